// The characters of the text, each with its label or its surprise below, and what the model thought of it on hover and focus.
"use strict";

class Strip {
  // `link(k)` is told which character is looked at, or -1.
  constructor(root, tip, link) {
    Object.assign(this, { root, tip, link, cells: [], entries: [], active: 0, over: -1, linked: -1, hiding: 0 });
    root.addEventListener("keydown", event => this.#key(event));
    root.addEventListener("focusin", event => this.#look(this.#place(event.target)));
    root.addEventListener("focusout", () => this.#leave(0));
    root.addEventListener("pointerover", event => this.#look(this.#place(event.target)));
    root.addEventListener("pointerleave", () => this.#leave(150));
    tip.addEventListener("pointerenter", () => clearTimeout(this.hiding));
    tip.addEventListener("pointerleave", () => this.#leave(150));
    root.addEventListener("click", event => this.#focus(this.#place(event.target)));
    addEventListener("keydown", event => event.key === "Escape" && this.#hide());
    addEventListener("scroll", () => this.#hide(), { capture: true, passive: true });
  }

  // `entries` are {character, below, name, className, share, about()} of each character. Cells that are there are used again.
  draw(entries, className) {
    this.entries = entries;
    this.root.className = "strip " + className;
    while (this.cells.length > entries.length) this.cells.pop().root.remove();
    const added = entries.slice(this.cells.length).map(() => this.#cell());
    this.root.append(...added.map(cell => cell.root));
    entries.forEach((entry, k) => this.cells[k].show(entry));
    this.#rove(Math.min(this.active, entries.length - 1));
    if (this.over >= entries.length) this.#hide();
    else if (this.over >= 0) this.#look(this.over);
  }

  mark(place) {
    this.cells[this.linked]?.root.classList.remove("linked");
    this.cells[place]?.root.classList.add("linked");
    this.linked = place;
  }

  #cell() {
    const root = make("span"), above = make("b");
    root.append(above);
    root.setAttribute("role", "option");
    root.setAttribute("aria-selected", "false");
    root.tabIndex = -1;
    const last = {};
    const set = (key, value, apply) => { if (last[key] !== value) apply(last[key] = value); };
    const cell = {
      root,
      show({ character, below: text, name, className, share }) {
        set("character", character, value => above.textContent = shown(value));
        if (text !== undefined) set("below", text, value => root.dataset.below = value);
        set("name", name, value => root.setAttribute("aria-label", value));
        set("className", className, value => root.className = value);
        set("share", share, value => root.style.setProperty("--share", value));
      },
    };
    this.cells.push(cell);
    return cell;
  }

  #place(element) {
    const root = element.closest("[role=option]");
    return this.cells.findIndex(cell => cell.root === root);
  }

  // The one character that the tab key comes to.
  #rove(place) {
    for (const k of [this.active, place]) {
      const cell = this.cells[k]?.root;
      cell?.setAttribute("aria-selected", String(k === place));
      if (cell) cell.tabIndex = k === place ? 0 : -1;
    }
    this.active = Math.max(0, place);
  }

  #focus(place) {
    if (!this.cells[place]) return;
    this.#rove(place);
    this.cells[place].root.focus();
  }

  #key(event) {
    const back = getComputedStyle(this.root).direction === "rtl" ? "ArrowRight" : "ArrowLeft";
    const last = this.cells.length - 1;
    const to = { ArrowLeft: 0, ArrowRight: 0, Home: 0, End: last }[event.key];
    if (to === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    const step = event.key === back ? -1 : 1;
    this.#focus(event.key.startsWith("Arrow") ? Math.min(last, Math.max(0, this.active + step)) : to);
  }

  #look(place) {
    if (place < 0) return;
    clearTimeout(this.hiding);
    const cell = this.cells[place].root;
    if (this.over >= 0) this.cells[this.over]?.root.removeAttribute("aria-describedby");
    this.over = place;
    this.tip.replaceChildren(...this.entries[place].about());
    this.tip.hidden = false;
    cell.setAttribute("aria-describedby", this.tip.id);
    const box = cell.getBoundingClientRect(), own = this.tip.getBoundingClientRect();
    const below = box.bottom + 6 + own.height < innerHeight || box.top < own.height + 6;
    const left = Math.min(Math.max(8, box.left + box.width / 2 - own.width / 2), document.documentElement.clientWidth - own.width - 8);
    this.tip.style.translate = `${left}px ${below ? box.bottom + 6 : box.top - own.height - 6}px`;
    this.link(place);
  }

  #leave(wait) {
    clearTimeout(this.hiding);
    this.hiding = setTimeout(() => this.#hide(), wait);
  }

  #hide() {
    if (this.over < 0) return;
    this.cells[this.over]?.root.removeAttribute("aria-describedby");
    this.over = -1;
    this.tip.hidden = true;
    this.link(-1);
  }
}

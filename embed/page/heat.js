// The hidden state as a picture: a column for each character, a row for each number, from −1 to 1.
"use strict";

class Heat {
  // `link(k)` is told which character is looked at, or -1.
  constructor(link) {
    Object.assign(this, { link, state: null, characters: [], column: -1, unit: 0, width: 1, height: 1 });
    const box = at("heat"), canvas = at("cells");
    canvas.addEventListener("pointermove", event => this.#look(
      Math.floor(event.offsetX / this.width), Math.floor(event.offsetY / this.height)));
    canvas.addEventListener("pointerleave", () => this.#look(-1, 0));
    box.addEventListener("keydown", event => this.#key(event));
    box.addEventListener("focusout", () => this.#look(-1, 0));
    box.addEventListener("scroll", () => this.#wider(), { passive: true });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.paint());
    addEventListener("resize", () => this.state && this.draw(this.state, this.characters));
  }

  // `state` is {values (T * units), units, ways}.
  draw(state, characters) {
    const T = Math.min(MOST, characters.length), { units, ways } = state;
    const canvas = at("cells");
    Object.assign(this, { state, characters, T });
    this.width = Math.min(32, Math.max(14, Math.floor(at("heat").clientWidth / T)));
    this.height = Math.min(16, Math.max(1, Math.floor(224 / units)));
    [canvas.width, canvas.height] = [T, units];
    canvas.style.width = T * this.width + "px";
    canvas.style.height = units * this.height + "px";
    at("divider").hidden = ways === 1;
    at("divider").style.top = units * this.height / 2 + "px";
    this.paint();
    this.#axis();
    this.#wider();
    canvas.setAttribute("aria-label", this.#described());
    this.mark(this.column < T ? this.column : -1);
  }

  // One pixel for each number; the style sheet makes it larger. Colours are those of the scale below it.
  paint() {
    if (!this.state) return;
    const { T, state: { values, units } } = this;
    const [cold, middle, hot] = ["cold", "middle", "hot"].map(id =>
      getComputedStyle(at(id)).backgroundColor.match(/[\d.]+/g).map(Number));
    const image = new ImageData(T, units);
    for (let t = 0; t < T; t++) {
      for (let unit = 0; unit < units; unit++) {
        const value = values[t * units + unit], end = value < 0 ? cold : hot, share = Math.min(1, Math.abs(value));
        const place = 4 * (unit * T + t);
        for (let k = 0; k < 3; k++) image.data[place + k] = middle[k] + share * (end[k] - middle[k]);
        image.data[place + 3] = 255;
      }
    }
    at("cells").getContext("2d", { willReadFrequently: true }).putImageData(image, 0, 0);
  }

  mark(place) {
    const column = at("column"), axis = at("axis").children;
    if (this.column !== place) axis[this.column]?.classList.remove("linked");
    axis[place]?.classList.add("linked");
    column.hidden = place < 0 || place >= this.T;
    column.style.left = place * this.width + "px";
    column.style.width = this.width + "px";
    this.column = place;
  }

  // Many systems show no bar before one scrolls: a word, and a fade where the picture goes on.
  #wider() {
    const { scrollLeft, clientWidth, scrollWidth, classList } = at("heat");
    at("wider").hidden = scrollWidth <= clientWidth;
    classList.toggle("more", scrollLeft + clientWidth < scrollWidth - 1);
  }

  #axis() {
    const axis = at("axis"), { T, characters, width } = this;
    while (axis.children.length > T) axis.lastChild.remove();
    axis.append(...Array.from({ length: T - axis.children.length }, () => make("span")));
    for (let t = 0; t < T; t++) {
      const span = axis.children[t], text = shown(characters[t]), short = text.startsWith("U+") ? "·" : text;
      if (span.textContent !== short) span.textContent = short;
      span.style.width = width + "px";
    }
  }

  #described() {
    const { T, state: { values, units }, characters } = this;
    let [low, high] = [0, 0];
    for (let k = 0; k < T * units; k++) {
      if (values[k] < values[low]) low = k;
      if (values[k] > values[high]) high = k;
    }
    const place = k => `${signed(values[k])}, number ${k % units + 1} at ${spoken(characters[Math.floor(k / units)])}`;
    return `Heat map of ${counted(units, "number", "numbers")} at ${counted(T, "character", "characters")}. ` +
      `Highest: ${place(high)}. Lowest: ${place(low)}.`;
  }

  #look(column, unit) {
    const inside = this.state && column >= 0 && column < this.T && unit >= 0 && unit < this.state.units;
    at("reading").textContent = inside
      ? `number ${unit + 1} at ${shown(this.characters[column])}: ${signed(this.state.values[column * this.state.units + unit])}` : "";
    this.unit = inside ? unit : this.unit;
    this.link(inside ? column : -1);
  }

  #key(event) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step || !this.state || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    const within = (value, most) => Math.min(most - 1, Math.max(0, value));
    const fresh = this.column < 0;
    this.#look(within(fresh ? 0 : this.column + step[0], this.T), within(fresh ? 0 : this.unit + step[1], this.state.units));
    at("column").scrollIntoView({ block: "nearest", inline: "nearest" });
  }
}

// How characters, numbers and labels are shown and read out. Whatever comes from a person or a model goes into the page
// as text, never as HTML.
"use strict";

const MOST = 1000;      // characters that are answered and drawn, at most
const UNSURE = 0.7;     // below this a label has a dashed edge
const SURPRISING = 10;  // bits that have the full colour

const at = id => document.getElementById(id);

function make(tag, text = "", className = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  element.className = className;
  return element;
}

const code = character => "U+" + character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");

// A character as something that can be seen: spaces and controls have pictures, marks stand on a circle, and what
// only changes its neighbours is named by its number.
function shown(character) {
  const special = { " ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍", "\u007f": "␡" }[character];
  if (special) return special;
  if (character < " ") return String.fromCharCode(0x2400 + character.charCodeAt(0));
  if (/^\p{M}$/u.test(character)) return "◌" + character;
  return /^[\p{C}\p{Z}]$/u.test(character) ? code(character) : character;
}

// A character as a screen reader should say it.
function spoken(character) {
  const special = { " ": "space", "\n": "line end", "\t": "tab", "\r": "carriage return" }[character];
  return special ?? (/^[\p{L}\p{N}]$/u.test(character) ? character : `${shown(character)} ${code(character)}`);
}

const labelShown = label => label === "" ? "∅" : Array.from(label, c => c === " " ? c : shown(c)).join("");
const labelSpoken = label => label === "" ? "no text" : label;
const percent = p => (100 * p).toFixed(p > 0.9995 && p < 1 ? 2 : 1) + " %";
const bitsShown = bits => bits.toFixed(bits < 9.95 ? 1 : 0);
const signed = value => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3);
const counted = (number, one, many) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

// Milliseconds, as far as they mean something.
const rounded = number => Number(number.toPrecision(2)).toLocaleString("en");
const time = ms => ms < 995 ? `${rounded(ms)} ms` : `${rounded(ms / 1000)} s`;

function median(values) {
  const sorted = [...values].sort((a, b) => a - b), half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

// A list of shares: a name, a bar and a number each.
function bars(list, entries, name) {
  list.replaceChildren(...entries.map(({ label, probability }) => {
    const item = make("li"), bar = make("b");
    bar.style.width = 100 * probability + "%";
    item.append(make("span", name(label)), bar, make("em", percent(probability)));
    return item;
  }));
}

const nextShown = character => character === null ? "unknown" : shown(character);

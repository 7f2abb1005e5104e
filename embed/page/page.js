// The page: what is typed goes to the worker, the newest text as soon as the one before is answered, and what comes back
// is drawn.
"use strict";

const LAST = 20;   // answers that the latency is the median of
const REST = 800;  // milliseconds without an answer after which a screen reader is told

const OLD = "This browser is too old to run the model: it needs WebAssembly with SIMD and DecompressionStream, " +
  "as Chrome and Edge 91, Firefox 114 and Safari 16.4 or later have them.";
const MISSING = "A file of this page is missing or damaged: copy the whole folder again, or write it again with `ohlol web`.";
// Smallest module with an instruction of SIMD.
const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];

const ABOUT = { tag: "A label for every character", classify: "A label for the text", lm: "What comes next, and how odd each character is" };
const TITLES = { tag: "Labels", classify: "Label", lm: "Surprise" };

let worker, strip, heat;
let linked = null;      // which of the two shows a character that is looked at
let busy = true;        // the worker has a request
let wanted = null;      // the newest text that it has not been asked about
let request = null;     // to write on, which waits for the answer before it
let generating = false;
let resting = 0, frame = 0;
let first = null;       // milliseconds from opening the page to the first answer
const latencies = [];

function begin() {
  if (typeof MODEL === "undefined" || typeof RUNTIME === "undefined") return fail(MISSING);
  if (!globalThis.WebAssembly?.validate(new Uint8Array(SIMD)) || !globalThis.DecompressionStream) return fail(OLD);
  describe();
  strip = new Strip(at("strip"), at("tip"), place => link(place, strip));
  heat = new Heat(place => link(place, heat));
  listen();
  at("text").value = MODEL.examples[0] ?? "";
  try {
    const url = URL.createObjectURL(new Blob([RUNTIME.worker], { type: "text/javascript" }));
    worker = new Worker(url);
  } catch (error) {
    return fail(`${OLD} (${error.message})`);
  }
  worker.onmessage = ({ data }) => replies[data.kind](data);
  worker.onerror = event => fail(`The model's worker did not start. ${event.message ?? ""}`);
  const { files, characters, probe } = MODEL, { module, wasm, ohlol } = RUNTIME;
  worker.postMessage({ kind: "start", model: { files, characters, probe }, runtime: { module, wasm, ohlol } });
}

// A character that is looked at, or -1, in the strip and the heat map: neither takes away what the other shows.
function link(place, by) {
  if (place < 0 && linked !== by) return;
  linked = by;
  strip.mark(place);
  heat.mark(place);
}

function fail(message) {
  at("loading").hidden = true;
  at("trouble").hidden = false;
  at("trouble").textContent = message;
}

function describe() {
  document.title = `${MODEL.title} · ohlol`;
  at("title").textContent = MODEL.title;
  at("about").textContent = `${ABOUT[MODEL.task]}, by a small network that runs in your browser.`;
  at("answer-title").textContent = TITLES[MODEL.task];
  at("bars").hidden = MODEL.task !== "classify";
  at("next").hidden = MODEL.task !== "lm";
  at("words").hidden = !MODEL.words;
  at("strip-title").classList.toggle("quiet", MODEL.task === "tag");
  at("examples").replaceChildren(...MODEL.examples.map(text => {
    const button = make("button", text, "plain");
    button.addEventListener("click", () => put(text));
    return button;
  }));
  for (const [name, value] of [...MODEL.facts, ["ONNX Runtime Web", RUNTIME.version]])
    at("fact-list").append(make("dt", name), make("dd", value));
}

function listen() {
  const text = at("text");
  text.addEventListener("input", ask);
  at("theme").addEventListener("change", () => {
    document.documentElement.style.colorScheme = at("theme").value;
    heat.paint();
  });
  at("temperature").addEventListener("input", () => at("temperature-shown").textContent = Number(at("temperature").value).toFixed(2));
  at("go").addEventListener("click", event => {
    if (!generating) return;  // then the form is checked, and sent
    event.preventDefault();
    worker.postMessage({ kind: "stop" });
  });
  at("controls").addEventListener("submit", event => {
    event.preventDefault();
    write();
  });
  at("take").addEventListener("click", () => put(at("made").textContent));
}

function put(text) {
  at("text").value = text;
  at("text").focus();
  ask();
}

// ---- Answers ----

// Once for each frame, however fast the keys come.
function ask() {
  wanted = at("text").value;
  if (generating) worker.postMessage({ kind: "stop" });
  if (!frame) frame = requestAnimationFrame(() => { frame = 0; next(); });
}

function next() {
  if (busy) return;
  if (wanted !== null) answerText();
  else if (request) writeOn();
}

function answerText() {
  const characters = Array.from(wanted.slice(0, 2 * MOST + 1));
  const long = characters.length > MOST;
  at("cut").hidden = !long;
  at("cut").textContent = `A long text: its first ${MOST.toLocaleString("en")} characters are read.`;
  busy = true;
  worker.postMessage({ kind: "answer", text: long ? characters.slice(0, MOST).join("") : wanted });
  wanted = null;
}

const replies = {
  start() {
    at("loading").hidden = true;
    at("answer").hidden = false;
    at("generate").hidden = !(MODEL.task === "lm" && "stream.onnx" in MODEL.files);
    busy = false;
    ask();
  },

  answer({ found, ms }) {
    at("trouble").hidden = true;
    draw(found);
    if (first !== null && ms !== undefined) latencies.push(ms);  // the first one compiles what it runs
    first ??= performance.now();
    if (latencies.length > LAST) latencies.shift();
    showLatency();
    busy = false;
    next();
  },

  made({ text }) {
    at("written").textContent += text;
    at("made").scrollTop = at("made").scrollHeight;
  },

  generate({ text, stopped }) {
    replies.made({ text });
    const count = Array.from(at("written").textContent).length;
    at("written-summary").textContent = `${stopped ? "Stopped after" : "Wrote"} ${counted(count, "character", "characters")}: ${at("written").textContent.slice(0, 300)}`;
    ended();
  },

  error({ of, message }) {
    fail(of === "start" ? `The model cannot be loaded: ${message}` : message);
    if (of === "start") return;  // nothing to go on with
    if (of === "generate") ended();
    busy = false;
    next();
  },
};

function draw(found) {
  const entries = entriesOf(found);
  strip.draw(entries, { tag: "", classify: "plainly", lm: "surprised" }[MODEL.task]);
  at("strip").hidden = at("strip-title").hidden = !entries.length;
  at("undrawn").hidden = found.characters.length <= MOST;
  at("undrawn").textContent = `… and ${counted(found.characters.length - MOST, "more character", "more characters")}`;
  drawAnswer(found);
  drawLegend(found, entries);
  at("state").hidden = !found.hidden;
  if (found.hidden) {
    const { units, ways } = found.hidden;
    at("state-hint").textContent = `A column for each character, a row for each of the ${units.toLocaleString("en")} numbers of the last layer after it` +
      (ways === 2 ? ": above those of the direction that reads forwards, below those of the one that reads backwards." : ".");
    heat.draw(found.hidden, found.characters);
  }
  clearTimeout(resting);
  resting = setTimeout(() => at("summary").textContent = summary(found), REST);
}

function showLatency() {
  const parts = [`First answer ${time(first)} after opening`];
  if (latencies.length) parts.push(`last ${time(latencies.at(-1))}`, `median of ${latencies.length}: ${time(median(latencies))}`);
  at("latency").textContent = parts.join(" · ");
}

// ---- Writing on ----

function write() {
  const seed = at("seed").value === "" ? null : Number(at("seed").value);
  const { value: length } = at("length"), { value: temperature } = at("temperature");
  request = { kind: "generate", prompt: at("text").value, seed, length: Number(length), temperature: Number(temperature) };
  next();
}

function writeOn() {
  busy = generating = true;
  at("go").textContent = "Stop";
  at("prompt").textContent = request.prompt;
  at("written").textContent = at("written-summary").textContent = "";
  at("made").hidden = false;
  at("take").hidden = true;
  worker.postMessage(request);
  request = null;
}

function ended() {
  generating = busy = false;
  at("go").textContent = "Write on";
  at("take").hidden = false;
  next();
}

begin();

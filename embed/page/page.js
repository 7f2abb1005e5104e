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
let room = MOST;        // characters that are answered; the worker knows how many fit into one call
let busy = true;        // the worker has a request
let wanted = null;      // the newest text that it has not been asked about
let request = null;     // to write on, which waits for the answer before it
let generating = false;
let replaying = false;  // the proof is asked for, and not told yet
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
  const { files, proof, probe } = MODEL, { module, wasm, ohlol } = RUNTIME;
  worker.postMessage({ kind: "start", model: { files, proof, probe }, runtime: { module, wasm, ohlol }, most: MOST });
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
  const { packed, all } = MODEL.cases;
  at("replay").hidden = !packed;
  at("left-out").hidden = packed === all;
  at("left-out").textContent = `Of the bundle's ${all} cases the ${all - packed} largest are not in this page; \`ohlol verify\` has them all.`;
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
  at("replay").addEventListener("click", () => {
    if (replaying) return;
    replaying = true;
    tellProof("Replaying …");
    next();
  });
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
  else if (replaying) send({ kind: "verify" });
}

function send(message) {
  busy = true;
  worker.postMessage(message);
}

// The worker has answered: only now may it be asked again.
function free() {
  busy = false;
  next();
}

function answerText() {
  const characters = Array.from(wanted.slice(0, 2 * room + 1));
  const long = characters.length > room;
  at("cut").hidden = !long;
  at("cut").textContent = `A long text: its first ${room.toLocaleString("en")} characters are read.`;
  send({ kind: "answer", text: long ? characters.slice(0, room).join("") : wanted });
  wanted = null;
}

const replies = {
  start({ most }) {
    room = most;
    at("loading").hidden = true;
    at("answer").hidden = false;
    at("generate").hidden = !(MODEL.task === "lm" && "stream.onnx" in MODEL.files);
    busy = false;
    ask();
  },

  answer({ found, ms }) {
    at("trouble").hidden = true;
    if (found.cut) at("cut").hidden = false;
    try {
      draw(found);
    } catch (error) {
      fail(`The answer cannot be drawn: ${error.message}`);  // the next text has an answer of its own
    }
    if (first !== null && ms !== undefined) latencies.push(ms);  // the first one compiles what it runs
    first ??= performance.now();
    if (latencies.length > LAST) latencies.shift();
    showLatency();
    free();
  },

  made({ text }) {
    at("written").textContent += text;
    at("made").scrollTop = at("made").scrollHeight;
  },

  generate({ text, stopped }) {
    replies.made({ text });
    const count = Array.from(at("written").textContent).length;
    at("written-summary").textContent = `${stopped ? "Stopped after" : "Wrote"} ${counted(count, "character", "characters")}: ${at("written").textContent.slice(0, 300)}`;
    generationEnded();
    free();
  },

  verify({ passed, rows }) {
    tellProof(proofSaid(rows), !passed);
    replaying = false;
    free();
  },

  error({ of, message }) {
    if (of === "start") return fail(`The model cannot be loaded: ${message}`);  // nothing to go on with
    if (of === "generate") generationEnded();
    if (of === "verify") {
      replaying = false;
      tellProof(`The proof cannot be replayed: ${message}`, true);
    } else fail(message);
    free();
  },
};

function draw(found) {
  const entries = entriesOf(found);
  strip.draw(entries, { tag: "", classify: "plainly", lm: "surprised" }[MODEL.task]);
  at("strip").hidden = at("strip-title").hidden = !entries.length;
  at("undrawn").hidden = found.characters.length <= MOST;
  at("undrawn").textContent = `… and ${counted(found.characters.length - MOST, "more character", "more characters")}`;
  at("none").hidden = !knowsNone(found);
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
  const parts = latencies.length ? [`Answered in ${time(latencies.at(-1))}`] : [];
  if (latencies.length > 2) parts.push(`the median of the last ${latencies.length} answers is ${time(median(latencies))}`);
  parts.push(`${parts.length ? "the" : "The"} first came ${time(first)} after opening.`);
  at("latency").textContent = parts.join("; ");
}

// ---- Writing on ----

function write() {
  const seed = at("seed").value === "" ? null : Number(at("seed").value);
  const { value: length } = at("length"), { value: temperature } = at("temperature");
  request = { kind: "generate", prompt: at("text").value, seed, length: Number(length), temperature: Number(temperature) };
  next();
}

function writeOn() {
  generating = true;
  at("go").textContent = "Stop";
  at("prompt").textContent = request.prompt;
  at("written").textContent = at("written-summary").textContent = "";
  at("made").hidden = false;
  at("take").hidden = true;
  send(request);
  request = null;
}

function generationEnded() {
  generating = false;
  at("go").textContent = "Write on";
  at("take").hidden = false;
}

// ---- The proof ----

function tellProof(text, failed = false) {
  at("replayed").textContent = text;
  at("replayed").classList.toggle("bad", failed);
}

// `rows` are those of `verify` in ohlol.d.ts: one for each file and case.
function proofSaid(rows) {
  const cases = new Set(rows.map(row => row.case)), wrong = rows.filter(({ ok }) => !ok);
  const files = [...new Set(rows.map(({ file }) => file))].join(" and ");
  const right = cases.size - new Set(wrong.map(row => row.case)).size;
  const error = Math.max(...rows.map(({ maxError }) => maxError));
  const told = [`${right} of ${counted(cases.size, "case", "cases")} as PyTorch answered, by ${files}; largest error ${error && error.toExponential(1)}.`];
  for (const { file, case: name, maxError, labels } of wrong.slice(0, 3))
    told.push(`Not so: ${name} by ${file}, error ${maxError.toExponential(1)}${labels ? "" : ", other labels"}.`);
  return told.join(" ");
}

begin();

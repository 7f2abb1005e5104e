// The model, in a worker of its own, so that typing never waits for it. The page sends one request at a time:
// {kind: "start", model, runtime, most}, {kind: "answer", text}, {kind: "generate", prompt, length, temperature, seed} and
// {kind: "stop"} in the midst of that, {kind: "verify"}. Each but "stop" is answered by {kind: its own, …} or
// {kind: "error", of, message}.
"use strict";

const MOST_LIKELY = 5;  // labels or characters that are told for each place
const FRAME = 16;       // milliseconds after which what was made is told, and a "stop" is heard

const LEAST = 2 ** -149;  // of a probability above 0, in float32
const NUMBERS = 2 ** 22;  // as in ohlol.mjs: a longer output is read by stream.onnx, and `outputs` has none of it

let most;  // characters that are answered: those asked for, but no more than model.onnx takes in one call
let model, files, proof, outputs, names, characters, ids;
let stopped = false;

const handlers = { start, answer, generate, verify, stop: () => { stopped = true; } };

onmessage = async ({ data }) => {
  try {
    await handlers[data.kind](data);
  } catch (error) {
    postMessage({ kind: "error", of: data.kind, message: String(error?.message ?? error) });
  }
};

async function start({ model: told, runtime, most: asked }) {
  let script, wasm;
  [script, wasm, files] = await Promise.all([unpacked(runtime.module), unpacked(runtime.wasm), allUnpacked(told.files)]);
  proof = told.proof;
  const ort = await module(script);
  ort.env.wasm.wasmBinary = wasm;
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "error";
  const { load } = await module(runtime.ohlol);
  names = told.probe?.names ?? [];
  const added = told.probe ? Uint8Array.from(atob(told.probe.added), c => c.charCodeAt(0)) : new Uint8Array();
  model = await load(files, { ort: watched(ort, files["model.onnx"], added) });
  characters = Array.from(model.facts.alphabet.characters);
  ids = new Map(characters.map((character, k) => [character, k + 2]));  // 0 is padding, 1 unknown
  const classes = model.task === "lm" ? characters.length + 2 : model.labels.length;
  most = Math.max(1, Math.min(asked, Math.floor(NUMBERS / classes)));
  postMessage({ kind: "start", most });
}

// What a script holds as gzip in base64. Throws where it was damaged on its way.
async function unpacked(text) {
  try {
    const characters = atob(text), bytes = new Uint8Array(characters.length);
    for (let k = 0; k < bytes.length; k++) bytes[k] = characters.charCodeAt(k);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  } catch {
    throw new Error("a file of this page is damaged; copy it again, or write it again with `ohlol web`");
  }
}

async function allUnpacked(texts) {
  const entries = Object.entries(texts).map(async ([name, text]) => [name, await unpacked(text)]);
  return Object.fromEntries(await Promise.all(entries));
}

// A module without an address of its own: from a page on the disk, nothing else can be imported, and only here.
async function module(source) {
  const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  try {
    return await import(url);
  } finally {
    URL.revokeObjectURL(url);
  }
}

// ONNX Runtime, but that `outputs` is what model.onnx answered last, and that the bytes `added`, more outputs, are put
// after those of its file. The file itself is as it was proved, and the answers are the same to the bit.
function watched(ort, bytes, added) {
  const is = given => given.length === bytes.length && given.every((byte, k) => byte === bytes[k]);
  return {
    Tensor: ort.Tensor,
    InferenceSession: {
      async create(given, options) {
        if (!is(given)) return ort.InferenceSession.create(given, options);
        const whole = new Uint8Array(given.length + added.length);
        whole.set(given);
        whole.set(added, given.length);
        const session = await ort.InferenceSession.create(whole, options);
        return {
          inputNames: session.inputNames,
          outputNames: session.outputNames.filter(name => !names.includes(name)),
          run: async feeds => (outputs = await session.run(feeds)),
          release: () => session.release(),
        };
      },
    },
  };
}

async function answer({ text }) {
  outputs = undefined;
  const begun = performance.now();
  const call = { tag: "tag", classify: "classify", lm: "score" }[model.task];
  const { read, cut } = fitting(text);
  const found = await model[call](read);
  const ms = text ? performance.now() - begun : undefined;
  const points = Array.from(found.text);
  const known = points.map(character => model.knows(character));
  const told = { ...found, cut, characters: points, known, hidden: hidden(points.length) };
  if (model.task === "lm" && outputs) Object.assign(told, foreseen(points));
  postMessage({ kind: "answer", found: told, ms });
}

// Of a text for a language model, as much as one call takes: its normalisation may have made it longer than it was typed.
function fitting(text) {
  const points = model.task === "lm" ? Array.from(model.normalise(text)) : [];
  return points.length > most ? { read: points.slice(0, most).join(""), cut: true } : { read: text, cut: false };
}

// The hidden state, `(T, units)` row by row: a row is that of a character, both ways side by side.
function hidden(T) {
  const ways = names.map(name => outputs?.[name]);
  if (!ways.length || ways.some(way => way?.dims[0] !== T)) return undefined;
  const H = ways[0].dims[2], units = H * ways.length, values = new Float32Array(T * units);
  ways.forEach(({ data }, way) => {
    for (let t = 0; t < T; t++) {
      const step = way ? T - 1 - t : t;  // the other way begins at the last character
      values.set(data.subarray(step * H, (step + 1) * H), t * units + way * H);
    }
  });
  return { values, units, ways: ways.length };
}

// Of a language model: how many bits each character was worth, NaN for the first, and what was expected before it and,
// one more, after the last.
function foreseen(points) {
  const { dims: [, T, V], data } = outputs.probabilities;
  const bits = new Float32Array(T).fill(NaN), expected = [[]];
  for (let t = 0; t < T; t++) {
    const row = data.subarray(t * V, (t + 1) * V);
    if (t + 1 < T) bits[t + 1] = -Math.log2(Math.max(LEAST, row[ids.get(points[t + 1]) ?? 1]));
    expected.push(best(row).map(id => ({ label: characters[id - 2] ?? null, probability: row[id] })));
  }
  return { bits, expected };
}

function best(row) {
  const found = [];
  row.forEach((value, id) => {
    if (found.length === MOST_LIKELY && !(value > row[found.at(-1)])) return;
    const place = found.findIndex(other => value > row[other]);
    found.splice(place < 0 ? found.length : place, 0, id);
    found.length = Math.min(found.length, MOST_LIKELY);
  });
  return found;
}

async function generate({ prompt, length, temperature, seed }) {
  stopped = false;
  let held = "", told = performance.now();
  const random = seed === null ? Math.random : seeded(seed);
  for await (const character of model.generate(prompt, { length, temperature, random })) {
    held += character;
    if (performance.now() - told < FRAME) continue;
    postMessage({ kind: "made", text: held });
    held = "";
    await new Promise(resolve => setTimeout(resolve));
    if (stopped) break;
    told = performance.now();
  }
  postMessage({ kind: "generate", text: held, stopped });
}

// What PyTorch answered when the bundle was made, held against what this browser answers: {passed, rows} of ohlol.d.ts.
async function verify() {
  Object.assign(files, await allUnpacked(proof));
  postMessage({ kind: "verify", ...await model.verify() });
}

// Numbers in [0, 1), the same for the same seed everywhere: SplitMix32.
function seeded(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x9e3779b9) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 16), 0x21f0aaad);
    mixed = Math.imul(mixed ^ (mixed >>> 15), 0x735a2d97);
    return ((mixed ^ (mixed >>> 15)) >>> 0) / 2 ** 32;
  };
}

// SPDX-License-Identifier: Apache-2.0
// A bundle of ohlol on ONNX Runtime, in Node and in the browser: docs/javascript.md, types in ohlol.d.ts.
// One file, no build step: the app brings onnxruntime-web or onnxruntime-node.

const [MODEL, STREAM, MANIFEST] = ["model.onnx", "stream.onnx", "manifest.json"];
const INPUTS = { [MODEL]: ["codepoints", "lengths"], [STREAM]: ["codepoints", "state"] };
const CALLS = { tag: "tag(text)", classify: "classify(text)", lm: "score(text) or generate(prompt)" };
const UNKNOWN = 1;
const RESERVED = 2; // ids below this are not characters
const LONGEST = 65_536; // characters of a text that can only be read whole
const CELLS = 16_384; // characters of a batch, padding included
const STEP = 8_192; // characters of a long text that stream.onnx reads at once
const NUMBERS = 2 ** 22; // in an output of a batch; a step has a quarter, a text that can only be read whole four times
const MOST_JOINED = 4_096; // characters that join each other; text that people write needs about 30
const NODE = Boolean(globalThis.process?.versions?.node);

/** See ohlol.d.ts. */
export async function load(source, options = {}) {
  checkKeys("options", options, ["ort", "session"]);
  let files = filesOf(source);
  const ort = await runtime(options.ort);
  const manifest = files.single ? undefined : await manifestOf(files);
  if (manifest) files = checkedFiles(files, manifest);
  const bytes = await files.read(MODEL);
  const facts = await factsOf(bytes, files.where(MODEL), manifest);
  const engine = new Engine(ort, options.session, files, facts);
  await engine.session(MODEL, bytes);
  return new Model(engine);
}

// ---- What an app sees ----

class Model {
  #engine;

  constructor(engine) {
    this.#engine = engine;
    this.task = engine.facts.task;
    this.labels = engine.facts.labels;
    this.facts = engine.facts;
    this.maxLength = engine.maxLength;
    Object.freeze(this);
  }

  knows(character) {
    return this.#engine.ids.has(character);
  }

  normalise(text) {
    checkText(text);
    return spelled(normalised(text, this.#engine.form));
  }

  async tag(texts) {
    return this.#engine.during(() => this.#answers("tag", texts));
  }

  async classify(texts) {
    return this.#engine.during(() => this.#answers("classify", texts));
  }

  async score(texts) {
    return this.#engine.during(() => this.#answers("lm", texts));
  }

  async stream() {
    this.#engine.needStream();
    await this.#engine.during(() => this.#engine.session(STREAM));
    return new Stream(this.#engine);
  }

  generate(prompt = "", sampling = {}) {
    const engine = this.#engine;
    if (this.task !== "lm") throw wrongTask(this.task, "generate(prompt)");
    engine.needStream();
    if (!engine.characters.length) throw new Error("the model's alphabet is empty, so there is nothing to make");
    checkText(prompt, "the prompt");
    const rules = checkSampling(sampling);
    return until(rules.stops, made(engine, normalised(prompt, engine.form), rules), rules.length);
  }

  async verify() {
    return this.#engine.during(() => proof(this.#engine));
  }

  async release() {
    await this.#engine.release();
  }

  async #answers(task, given) {
    if (task !== this.task) throw wrongTask(this.task, CALLS[task]);
    const engine = this.#engine;
    const texts = Array.isArray(given) ? Array.from(given) : [given];
    if (!texts.length) throw new RangeError("an array of no texts: give one at least");
    texts.forEach((text, k) => checkText(text, Array.isArray(given) ? `text ${k} of the array` : "the text"));
    const rows = texts.map((text) => {
      const characters = normalised(text, engine.form);
      if (characters.length > engine.maxLength) throw tooLong(characters.length, engine);
      return { characters, points: pointsOf(characters), reading: engine.reading() };
    });
    const isLong = ({ points }) => engine.streams && points.length > engine.cells;
    for (const { points, reading } of rows.filter(isLong)) await engine.readOn(points, reading);
    const whole = rows.filter((row) => row.points.length && !isLong(row));
    for (const batch of batches(whole, engine.cells)) {
      const points = batch.map((row) => row.points);
      const outputs = await engine.batch(points);
      batch.forEach(({ reading }, k) => reading.add(points[k], outputs[k]));
    }
    const results = rows.map(({ characters, reading }) => reading.result(characters));
    return Array.isArray(given) ? results : results[0];
  }
}

/** One text in pieces. Calls are answered in their order; what waits behind one that fails, fails with it. */
class Stream {
  #engine;
  #turn = Promise.resolve(); // the last call's
  #now = { state: undefined, last: undefined, held: "", offset: 0, ended: false };

  constructor(engine) {
    this.#engine = engine;
  }

  feed(piece) {
    return this.#next(piece, false);
  }

  finish() {
    return this.#next("", true);
  }

  #next(piece, end) {
    const turn = this.#turn.then(() => this.#engine.during(() => this.#answer(piece, end)));
    this.#turn = turn;
    turn.catch(() => {
      if (this.#turn === turn) this.#turn = Promise.resolve(); // nothing waits behind it: begin afresh
    });
    return turn;
  }

  async #answer(piece, end) {
    const { state, last, held, offset, ended } = this.#now;
    checkText(piece, "the piece");
    if (ended) throw new Error("the stream has ended; begin another text with model.stream()");
    const text = held + piece;
    const cut = end ? text.length : ready(text, this.#engine.form);
    const characters = normalised(text.slice(0, cut), this.#engine.form, offset);
    const reading = this.#engine.reading(last);
    const after = await this.#engine.readOn(pointsOf(characters), reading, state);
    this.#now = { state: after, last: reading.last, held: text.slice(cut), offset: offset + cut, ended: end };
    return reading.result(characters);
  }
}

// ---- What a task makes of the outputs of one text, part by part ----

/** `add` takes code points (T,) and their outputs (T, C); `last` is what a stream carries from piece to piece. */
class Reading {
  constructor(engine, last) {
    this.engine = engine;
    this.last = last;
  }
}

class TagReading extends Reading {
  #ids = [];
  #probabilities = [];

  add(points, { label_ids, probabilities }) {
    this.#ids.push(label_ids);
    this.#probabilities.push(probabilities);
  }

  result(characters) {
    const { classes, facts, ids } = this.engine;
    const found = joined(Int32Array, this.#ids);
    const probabilities = joined(Float32Array, this.#probabilities);
    const labels = characters.map(({ character, start, end }, t) => {
      const probability = probabilities[t * classes + found[t]];
      return { character, start, end, label: facts.labels[found[t]], probability, known: ids.has(character) };
    });
    const answer = { text: spelled(characters), labels, probabilities };
    return facts.label_scheme === "words" ? { ...answer, ...marked(labels) } : answer;
  }
}

class ClassifyReading extends Reading {
  add(points, { label_ids, probabilities }) {
    this.last = { id: label_ids[0], probabilities };
  }

  result(characters) {
    const text = spelled(characters);
    if (!this.last) return { text, label: null, probability: null, probabilities: [] };
    const all = this.engine.facts.labels.map((label, k) => ({ label, probability: this.last.probabilities[k] }));
    const best = { ...all[this.last.id] };
    return { text, ...best, probabilities: all.sort((a, b) => b.probability - a.probability) };
  }
}

class ScoreReading extends Reading {
  #nats = 0;
  #count = 0;

  add(points, { logits }) {
    const { ids, classes } = this.engine;
    for (const [t, point] of points.entries()) {
      if (this.last) {
        this.#nats += natsOf(this.last, ids.get(String.fromCodePoint(point)) ?? UNKNOWN);
        this.#count += 1;
      }
      this.last = logits.subarray(t * classes, (t + 1) * classes);
    }
    this.last = this.last.slice(); // without the others
  }

  result(characters) {
    const text = spelled(characters);
    if (!this.last) return { text, next: null, probability: null, natsPerCharacter: null };
    const best = indexOfLargest(this.last);
    const next = this.engine.characters[best - RESERVED] ?? null;
    const natsPerCharacter = this.#count ? this.#nats / this.#count : null;
    return { text, next, probability: Math.exp(-natsOf(this.last, best)), natsPerCharacter };
  }
}

const READINGS = { tag: TagReading, classify: ClassifyReading, lm: ScoreReading };

/** The words and sentences that labels mark; docs/format.md. */
function marked(labels) {
  const [words, sentences] = [[], []]; // from and to, in characters
  labels.forEach(({ label }, t) => {
    const begins = label === "B" || label === "S" || (label === "I" && (labels[t - 1]?.label ?? "O") === "O");
    if (begins) words.push({ from: t, to: t + 1 });
    else if (label === "I") words.at(-1).to = t + 1;
  });
  for (const word of words) {
    if (!sentences.length || labels[word.from].label === "S") sentences.push({ ...word });
    else sentences.at(-1).to = word.to;
  }
  const cut = ({ from, to }) => {
    const text = spelled(labels.slice(from, to));
    return { text, start: labels[from].start, end: labels[to - 1].end };
  };
  return { words: words.map(cut), sentences: sentences.map(cut) };
}

// ---- Sessions and calls ----

/** A model's facts, and its files in the runtime. */
class Engine {
  #sessions = new Map();
  #running = new Set();
  #released = false;

  constructor(ort, options, files, facts) {
    const { task, alphabet, labels, network } = facts;
    Object.assign(this, { ort, options, files, facts, form: alphabet.normalisation, streams: files.has(STREAM) });
    this.characters = Array.from(alphabet.characters);
    this.ids = new Map(this.characters.map((character, k) => [character, k + RESERVED]));
    this.classes = task === "lm" ? this.characters.length + RESERVED : labels.length;
    const most = (characters, numbers) => Math.max(1, Math.min(characters, Math.floor(numbers / this.classes)));
    this.cells = most(CELLS, NUMBERS);
    this.step = most(STEP, NUMBERS / 4);
    this.maxLength = this.streams ? Infinity : most(LONGEST, NUMBERS * 4);
    this.states = network.num_layers * (network.cell === "lstm" ? 2 : 1);
    this.outputs = ["logits", "probabilities", ...(task === "lm" ? [] : ["label_ids"])];
  }

  reading(last) {
    return new READINGS[this.facts.task](this, last);
  }

  needStream() {
    if (this.streams) return;
    const why = this.facts.network.bidirectional
      ? "the network reads both ways, so its answers need the end of the text; give it whole texts"
      : `there is no ${STREAM}; export it with --formats onnx,stream, and load the whole bundle`;
    fail(this.files.where(STREAM), why);
  }

  /** The session of a file, which is read when it is first needed; `bytes`: it was read and checked. */
  session(name, bytes) {
    if (!this.#sessions.has(name)) {
      const opening = this.#open(name, bytes);
      this.#sessions.set(name, opening);
      opening.catch(() => this.#sessions.delete(name)); // the network may be back the next time
    }
    return this.#sessions.get(name);
  }

  async #open(name, bytes) {
    const where = this.files.where(name);
    if (!bytes) {
      bytes = await this.files.read(name);
      await factsOf(bytes, where, this.facts, name);
    }
    const extra = { session: { intra_op: { allow_spinning: "0" } } };
    const options = { intraOpNumThreads: 1, interOpNumThreads: 1, logSeverityLevel: 4, extra, ...this.options };
    const session = await inTurn(() => this.ort.InferenceSession.create(bytes, options)).catch((error) => {
      const [, hint] = REFUSED.find(([said]) => said.test(error?.message));
      fail(where, `ONNX Runtime cannot open it (${lineOf(error)}); ${hint}`);
    });
    const [takes, expected] = [[...session.inputNames].sort().join(" and "), INPUTS[name].join(" and ")];
    if (takes !== expected) fail(where, `takes ${takes}, expected ${expected}; load the bundle, or the ${MODEL} in it`);
    return session;
  }

  async release() {
    this.#released = true;
    await Promise.allSettled(this.#running);
    const sessions = await Promise.allSettled(this.#sessions.values());
    this.#sessions.clear();
    for (const { value } of sessions) if (value) await inTurn(() => value.release());
  }

  /** A call of the app's, which `release` waits for. */
  async during(call) {
    if (this.#released) fail(this.files.where(MODEL), "the model was released; load it again");
    const running = call();
    this.#running.add(running);
    return running.finally(() => this.#running.delete(running));
  }

  /** The numbers of each output for `rows` texts of `time` code points. */

  async #run(name, feeds, rows, time) {
    const [session, where] = [await this.session(name), this.files.where(name)];
    // All outputs: before 1.24, onnxruntime-node gives those that are asked for under the names of others.
    const found = await inTurn(() => session.run(feeds)).catch((error) =>
      fail(where, `ONNX Runtime cannot answer (${lineOf(error)})`),
    );
    const sizes = { next_state: this.states * rows * this.facts.network.hidden_size };
    const outputs = name === STREAM ? [...this.outputs, "next_state"] : this.outputs;
    const numbers = outputs.map((output) => {
      const { data, dims } = found[output] ?? {};
      if (data?.length !== (sizes[output] ?? rows * this.places(time) * this.width(output)))
        fail(where, `\`${output}\` is ${data ? `(${dims})` : "missing"}, not as in the contract; export it again`);
      return [output, data];
    });
    return Object.fromEntries(numbers);
  }

  /** `outputs` of a file, without padding. Where logits are numbers, their softmax is. */
  #sound(name, outputs) {
    const { logits, label_ids = [] } = outputs;
    if (!logits.every(Number.isFinite) || !label_ids.every((id) => id >= 0 && id < this.classes))
      fail(this.files.where(name), "the model gives numbers that are none; export it again");
    return outputs;
  }

  /** How many answers a text of `time` code points has, and how many numbers each of them. */
  places(time) {
    return this.facts.task === "classify" ? 1 : time;
  }

  width(output) {
    return output === "label_ids" ? 1 : this.classes;
  }

  /** The outputs of each of `rows`, the code points (T,) of texts; they are one padded batch. */
  async batch(rows) {
    const time = Math.max(...rows.map((points) => points.length));
    const padded = new Int32Array(rows.length * time);
    rows.forEach((points, k) => padded.set(points, k * time));
    const lengths = Int32Array.from(rows, (points) => points.length);
    const feeds = {
      codepoints: new this.ort.Tensor("int32", padded, [rows.length, time]),
      lengths: new this.ort.Tensor("int32", lengths, [rows.length]),
    };
    const found = await this.#run(MODEL, feeds, rows.length, time);
    return rows.map((points, k) => this.#sound(MODEL, this.cut(found, k, points.length, time)));
  }

  /** Of outputs that are padded to `time`, those of the row `k`, which has `length` code points. */
  cut(outputs, k, length, time) {
    const part = ([name, data]) => {
      const start = k * this.places(time) * this.width(name);
      return [name, data.subarray(start, start + this.places(length) * this.width(name))];
    };
    return Object.fromEntries(Object.entries(outputs).map(part));
  }

  /** The outputs of the next code points of one text, and the state after them. */
  async next(points, state) {
    const dims = [this.states, 1, this.facts.network.hidden_size];
    const before = state?.slice() ?? new Float32Array(dims[0] * dims[2]); // a worker of the runtime takes it away
    const feeds = {
      codepoints: new this.ort.Tensor("int32", points, [1, points.length]),
      state: new this.ort.Tensor("float32", before, dims),
    };
    const found = await this.#run(STREAM, feeds, 1, points.length);
    const { next_state, ...outputs } = this.#sound(STREAM, found);
    return [outputs, next_state];
  }

  /** Tells `reading` the outputs of code points that stream.onnx reads; the state after them. */
  async readOn(points, reading, state) {
    for (let start = 0; start < points.length; start += this.step) {
      const part = points.slice(start, start + this.step);
      const [outputs, after] = await this.next(part, state);
      reading.add(part, outputs);
      state = after;
    }
    return state;
  }
}

// What a runtime says that opens no model, and what to do.
const REFUSED = [
  [/content security policy|\bCSP\b/i, "the page's script-src needs 'wasm-unsafe-eval'"],
  [/found 3c /, "the server answered a web page in place of its .wasm file: docs/javascript.md"],
  [/backend/, "its .wasm file must be served too: docs/javascript.md"],
  [/^/, "copy or export it again"],
];

/** Rows of like length together, at most `cells` code points with padding (or one row). */
function* batches(rows, cells) {
  let batch = [];
  for (const row of [...rows].sort((a, b) => a.points.length - b.points.length)) {
    if (batch.length && (batch.length + 1) * row.points.length > cells) {
      yield batch;
      batch = [];
    }
    batch.push(row);
  }
  if (batch.length) yield batch;
}

let turn = Promise.resolve();

/** One call of the runtime at a time: onnxruntime-web refuses a second one, of another session too. */
function inTurn(call) {
  const mine = turn.then(call);
  turn = mine.catch(() => {});
  return mine;
}

async function runtime(given) {
  const name = NODE ? "onnxruntime-node" : "onnxruntime-web"; // not spelled in `import`: bundlers would look for both
  if (given === undefined && NODE) process.env.ORT_DISABLE_TELEMETRY ??= "1"; // it reports home by default
  const importing = given === undefined ? import(/* webpackIgnore: true */ /* @vite-ignore */ name) : given;
  const module = await Promise.resolve(importing).catch((error) => {
    const hint = NODE ? "install it" : "name it in an import map";
    throw new Error(`${name} cannot be imported (${lineOf(error)}); ${hint}, or give it: load(source, { ort })`);
  });
  const ort = module?.InferenceSession ? module : module?.default;
  if (typeof ort?.InferenceSession?.create !== "function" || typeof ort.Tensor !== "function")
    throw new TypeError(`ort is ${kindOf(given)}, expected the module onnxruntime-web or onnxruntime-node`);
  if (ort.env?.wasm && ort.env.wasm.numThreads === undefined) ort.env.wasm.numThreads = 1; // more cost more than they give
  return ort;
}

// ---- Text ----

const OFTEN = "\0-\u02ff\u3400-\u9fff\uac00-\ud7a3"; // none of these joins what is before it
const ENDS = /[\p{Cc}\p{Zl}\p{Zp}\p{Zs}]/u; // spaces, line ends, controls: nothing that follows joins them
const BEGINS = new RegExp(`^[${OFTEN}]`);
const LONG_RUN = new RegExp(`(?<![^${OFTEN}])[^${OFTEN}]{${MOST_JOINED}}`, "u"); // tried where a run begins, no more

/**
 * The characters of `text` in a normal form, each with its place in the text given: `{ character, start, end }`, in
 * UTF-16 units from `offset`. Characters of a piece that changes have the place of the whole piece.
 */
function normalised(text, form, offset = 0) {
  const found = [];
  const put = (piece, normal) => {
    for (const character of normal) {
      const size = normal === piece ? character.length : piece.length;
      found.push({ character, start: offset, end: offset + size });
      if (normal === piece) offset += size;
    }
    if (normal !== piece) offset += piece.length;
  };
  // Engines sort marks by insertion: of a hundred thousand in a row, that takes seconds. Pieces are refused first.
  if (form === "none" || (!LONG_RUN.test(text) && text.normalize(form) === text)) put(text, text);
  else for (const piece of piecesOf(text, form)) put(piece, piece.normalize(form));
  return found;
}

/** `text`, cut where both parts can be normalised apart. */
function* piecesOf(text, form) {
  let [start, at, count, open] = [0, 0, 0, false];
  for (const character of text) {
    if (at > start && (!open || begins(character))) {
      yield text.slice(start, at);
      [start, count] = [at, 0];
    }
    at += character.length;
    open = !ENDS.test(character);
    if (++count > MOST_JOINED) throw tooManyJoined(form);
  }
  yield text.slice(start);
}

/** How many UTF-16 units of `text` no later piece can change. */
function ready(text, form) {
  let at = /[\ud800-\udbff]$/.test(text) ? text.length - 1 : text.length; // half of a pair may become anything
  if (form === "none") return at;
  const characters = Array.from(text.slice(Math.max(0, at - 2 * MOST_JOINED - 2), at)).reverse();
  for (const [after, character] of characters.entries()) {
    if (ENDS.test(character)) return at;
    if (after === MOST_JOINED) throw tooManyJoined(form);
    at -= character.length;
    if (begins(character)) return at;
  }
  return at;
}

/**
 * Whether a character never joins what is before it, nor changes place with it, in any normal form. Marks do, the
 * vowels and finals of Hangul, and letters that are taken apart to one of those first; last, the vowels of Kirat Rai.
 */
function begins(character) {
  if (BEGINS.test(character)) return true;
  const [first] = character.normalize("NFKD");
  return !/[\p{M}\u1160-\u11ff\u{16d63}-\u{16d6a}]/u.test(first);
}

function tooManyJoined(form) {
  return new RangeError(
    `more than ${MOST_JOINED} combining characters in a row, to be brought to ${form}; is it text?`,
  );
}

/** The code points (T,) int32; a lone surrogate is one, and unknown to every model. */
function pointsOf(characters) {
  return Int32Array.from(characters, ({ character }) => character.codePointAt(0));
}

function spelled(characters) {
  return characters.map(({ character }) => character).join("");
}

function checkText(text, name = "the text") {
  if (typeof text !== "string") throw new TypeError(`${name} is ${kindOf(text)}, expected a string`);
}

// ---- Text that is made: the rules of docs/streams.md ----

function checkSampling(sampling) {
  checkKeys("sampling", sampling, ["length", "temperature", "topK", "topP", "stop", "random"]);
  const { length = 200, temperature = 1, topK = Infinity, topP = 1, stop = [], random = Math.random } = sampling;
  const need = (name, value, holds, expected) => {
    if (!holds) throw new RangeError(`${name} is ${show(value)}, expected ${expected}`);
  };
  need("length", length, Number.isInteger(length) && length >= 0, "a whole number from 0 up");
  need("temperature", temperature, Number.isFinite(temperature) && temperature >= 0, "a number from 0 up");
  need("topK", topK, topK === Infinity || (Number.isInteger(topK) && topK >= 1), "a whole number from 1 up");
  need("topP", topP, typeof topP === "number" && topP > 0 && topP <= 1, "a number above 0 and at most 1");
  need("random", random, typeof random === "function", "a function that gives a number in [0, 1)");
  const stops = typeof stop === "string" ? [stop] : stop;
  const strings = Array.isArray(stops) && stops.every((one) => typeof one === "string" && one);
  need("stop", stop, strings, "a string, or an array of strings, none of them empty");
  const possible = stops.filter((one) => !/\p{Surrogate}/u.test(one)); // a half of a pair is never made
  return { length, temperature, topK, topP, random, stops: possible };
}

/** Characters that follow the prompt, without end. */
async function* made(engine, prompt, { random, ...rules }) {
  const { characters, classes, step } = engine;
  const nothing = engine.ids.has("\n") ? [10] : [];
  let points = prompt.length ? pointsOf(prompt) : Int32Array.from(nothing);
  let [logits, state] = [new Float32Array(classes)]; // of nothing: all characters are equally likely
  for (;;) {
    for (let start = 0; start < points.length; start += step) {
      const [outputs, after] = await engine.next(points.slice(start, start + step), state);
      logits = outputs.logits.slice(-classes);
      state = after;
    }
    const p = drawnBy(logits, rules);
    const number = random();
    if (!(number >= 0 && number < 1))
      throw new RangeError(`random() gave ${show(number)}, expected a number in [0, 1)`);
    const drawn = number * p.reduce((sum, x) => sum + x, 0);
    let sum = 0;
    const id = p.findIndex((x) => (sum += x) > drawn);
    yield characters[id - RESERVED];
    points = Int32Array.of(characters[id - RESERVED].codePointAt(0));
  }
}

/** What each id is drawn by, (V,) float64: never padding or unknown; temperature, then topK, then topP. */
function drawnBy(logits, { temperature, topK, topP }) {
  const exact = Float64Array.from(logits);
  exact.fill(-Infinity, 0, RESERVED);
  const best = indexOfLargest(exact);
  const likeliest = exact[best];
  if (temperature === 0) return exact.map((_, id) => (id === best ? 1 : 0));
  const p = shares(exact.map((logit) => Math.exp((logit - likeliest) / temperature)));
  if (topK === Infinity && topP === 1) return p;
  // By the logits, not by p: a high temperature makes equals of them. Of equals, those of lower ids come first.
  const order = Array.from(exact.keys())
    .sort((a, b) => exact[b] - exact[a] || a - b)
    .slice(0, topK);
  const all = order.reduce((sum, id) => sum + p[id], 0);
  const kept = new Float64Array(p.length);
  for (let k = 0, sum = 0; k < order.length && (k === 0 || sum / all < topP); k++) {
    kept[order[k]] = p[order[k]];
    sum += p[order[k]];
  }
  return shares(kept);
}

function shares(p) {
  const sum = p.reduce((total, x) => total + x, 0);
  return p.map((x) => x / sum);
}

/** At most `length` of the characters made, up to the first stop string; what could become one waits. */
async function* until(stops, characters, length) {
  let held = "";
  for (let count = 0; count < length; count++) {
    held += (await characters.next()).value;
    const found = stops.map((stop) => held.indexOf(stop)).filter((at) => at >= 0);
    if (found.length) return yield* held.slice(0, Math.min(...found));
    const begun = stops.map((stop) => {
      let size = Math.min(stop.length - 1, held.length);
      while (size > 0 && !held.endsWith(stop.slice(0, size))) size--;
      return size;
    });
    const free = held.length - Math.max(0, ...begun);
    yield* held.slice(0, free);
    held = held.slice(free);
  }
  yield* held;
}

// ---- Where files come from ----

/** Of what `load` takes: `single`, `where(name)` for messages, `read(name)`, and `has(name)`. */
function filesOf(source) {
  if (source instanceof ArrayBuffer) source = new Uint8Array(source);
  const has = () => false;
  if (isBytes(source)) return { single: true, where: () => "the bytes given", read: async () => source, has };
  if (typeof source === "string" || source instanceof URL) {
    const { at, single, read } = placeOf(source);
    return { single, where: (name) => String(at(name)).slice(0, 200), read: (name) => read(at(name)), has };
  }
  if (typeof source !== "object" || source === null || Array.isArray(source))
    throw new TypeError(`the source is ${kindOf(source)}, expected a path, a URL, bytes or a bundle's files by name`);
  const read = async (name) => {
    if (!isBytes(source[name])) fail(name, `is ${kindOf(source[name])} among the files given, expected a Uint8Array`);
    return source[name];
  };
  return { single: false, where: (name) => name, read, has };
}

/** A path or a URL: `at(name)` is that of a file. */
function placeOf(source) {
  if (source === "") throw new TypeError("the source is an empty string, expected a path or a URL");
  if (NODE && typeof source === "string" && !/^(https?|file|data|blob):/i.test(source)) {
    const single = source.endsWith(".onnx");
    const folder = source.replace(/[\\/]+$/, "");
    return {
      single,
      at: (name) => (single ? source : `${folder}/${name}`),
      read: (file) => readDisk(file, !single && source),
    };
  }
  const url = new URL(source, globalThis.document?.baseURI ?? globalThis.location?.href);
  const single = /^(data|blob):$/.test(url.protocol) || url.pathname.endsWith(".onnx");
  const at = (name) => {
    const file = new URL(url);
    if (!single) file.pathname = `${url.pathname.replace(/\/+$/, "")}/${name}`;
    return file;
  };
  return { single, at, read: NODE && url.protocol === "file:" ? (file) => readDisk(file, !single && url) : fetched };
}

const AGAIN = "expected a bundle made by `ohlol export`, or an .onnx file of one";

async function readDisk(file, folder) {
  if (!process.getBuiltinModule) // bundlers follow an import
    throw new Error(`ohlol.mjs needs Node 20.16 or 22.3, or later; this is ${process.version}`);
  const { readFile, readdir, realpath, stat } = process.getBuiltinModule("node:fs/promises");
  const whole = (path) => (path instanceof URL ? path.href : process.getBuiltinModule("node:path").resolve(path));
  const held = folder ? await readdir(folder).catch(({ code }) => code) : [];
  if (held === "ENOTDIR") fail(whole(folder), "a file, expected a bundle's folder or an .onnx file of one");
  if (held.includes("recipe.toml") && !held.includes(MANIFEST))
    fail(whole(folder), `a run, not a bundle; make one of it: \`ohlol export ${folder}\``);
  try {
    if (folder) {
      const [real, root] = [await realpath(file), (await realpath(folder)).replace(/[\\/]$/, "")];
      if (!real.startsWith(root) || !/[\\/]/.test(real[root.length])) throw new Error("a link that leaves the bundle");
    }
    if (!(await stat(file)).isFile()) throw new Error("it is not a file");
    return await readFile(file);
  } catch (error) {
    return fail(whole(file), `cannot be read (${lineOf(error)}); ${AGAIN}`);
  }
}

async function fetched(url) {
  const where = String(url).slice(0, 200);
  const response = await fetch(url).catch((error) => fail(where, `cannot be fetched (${lineOf(error)}); ${AGAIN}`));
  if (!response.ok) fail(where, `cannot be fetched (HTTP ${response.status}); ${AGAIN}`);
  const bytes = new Uint8Array(await response.arrayBuffer());
  if (/^\s*</.test(new TextDecoder().decode(bytes.subarray(0, 99)))) // what hosts of single-page apps do for a 404
    fail(where, "the server answered a web page in the file's place; is the bundle served at this path?");
  return bytes;
}

/** `files`, each checked against what the manifest says of it when it is read. */
function checkedFiles(files, manifest) {
  const has = (name) => Object.hasOwn(manifest.files, name);
  const read = async (name) => {
    const where = files.where(name);
    if (!has(name)) fail(where, `${MANIFEST} does not list it; copy or export the bundle again`);
    const bytes = await files.read(name);
    const entry = manifest.files[name];
    if (bytes.length !== entry.bytes) damaged(where, `it has ${bytes.length} bytes, the manifest says ${entry.bytes}`);
    const found = await sha256(bytes);
    if ((found ?? entry.sha256) !== entry.sha256)
      damaged(where, `its sha256 is ${short(found)}, the manifest says ${short(entry.sha256)}`);
    return bytes;
  };
  return { ...files, has, read };
}

/** Lower-case hex; undefined where there is no crypto.subtle: a page that came neither by https nor from localhost. */
async function sha256(bytes) {
  if (!globalThis.crypto?.subtle) return undefined;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// ---- Facts: docs/format.md ----

async function manifestOf(files) {
  const [where, bytes] = [files.where(MANIFEST), await files.read(MANIFEST)];
  const manifest = readFacts(() => utf8(bytes), where);
  const listed = manifest.files;
  if (!isObject(listed) || !Object.hasOwn(listed, MODEL))
    fail(where, `\`files\` is ${show(listed)}, expected an object that lists ${MODEL}; export the bundle again`);
  for (const [name, entry] of Object.entries(listed)) {
    if (/[\\:\p{C}]/u.test(name) || name.split("/").some((part) => ["", ".", ".."].includes(part)))
      fail(where, `${show(name)} is not the name of a file of a bundle; refused`);
    if (!/^[0-9a-f]{64}$/.test(entry?.sha256) || !Number.isInteger(entry.bytes) || entry.bytes < 0)
      fail(where, `\`files\` has no sha256 and bytes of ${show(name)}; export the bundle again`);
  }
  return manifest;
}

/**
 * The facts in the metadata of an .onnx file, whose digest must be right, and which must agree with those of the
 * bundle, `others`. ONNX Runtime's JavaScript does not give metadata, so the file is read here.
 */
async function factsOf(bytes, where, others, name = MODEL) {
  const [texts, rest] = [new Map(), []];
  try {
    let graphs = 0;
    for (const { number, content, whole } of fieldsOf(bytes)) {
      graphs += number === 7;
      if (number !== 14) rest.push(whole);
      else {
        const pair = new Map([...fieldsOf(content)].map((field) => [field.number, field.content]));
        const key = utf8(pair.get(1));
        if (texts.has(key)) throw new Error(`${show(key)} is there twice`);
        texts.set(key, utf8(pair.get(2)));
      }
    }
    if (!graphs) throw new Error("there is no graph in it");
    if (isOutside(bytes)) throw new Error("a weight stands in another file");
  } catch (error) {
    fail(where, `not an ONNX file of ohlol, or damaged (${lineOf(error)}); copy or export it again`);
  }
  const said = texts.get("ohlol.sha256")?.replaceAll('"', "");
  const found = said === undefined ? undefined : await sha256(joined(Uint8Array, rest));
  if (found !== undefined && found !== said)
    damaged(where, `the sha256 of its graph is ${short(found)}, its metadata says ${short(said)}`);
  const ours = [...texts].filter(([key]) => key.startsWith("ohlol."));
  if (!ours.length)
    fail(where, "an ONNX file that ohlol did not export (its metadata names no alphabet); use `ohlol export`");
  const json = ours.map(([key, value]) => `${JSON.stringify(key.slice("ohlol.".length))}:${value}`);
  const facts = readFacts(() => `{${json.join(",")}}`, where);
  const own = name === MODEL ? ["sha256"] : ["sha256", "inputs", "outputs"];
  for (const [key, value] of Object.entries(others ? facts[EXACT] : {}))
    if (!own.includes(key) && value !== others[EXACT][key])
      damaged(where, `\`${key}\` differs from that of ${name === MODEL ? MANIFEST : MODEL}`);
  return facts;
}

const EXACT = Symbol("each fact as a string that is the same for the same value");

/** The facts in a JSON text, checked. */
function readFacts(read, where) {
  let facts, exact;
  try {
    [facts, exact] = strictJson(read());
  } catch (error) {
    fail(where, `not JSON as in docs/format.md (${lineOf(error)}); copy or export it again`);
  }
  const need = (key, holds, expected, value = facts[key]) => {
    if (!holds) fail(where, `${key} is ${show(value)}, expected ${expected}; copy or export it again`);
  };
  if (facts?.format !== "ohlol-bundle")
    fail(where, `format is ${show(facts?.format)}, expected "ohlol-bundle": not made by \`ohlol export\``);
  for (const key of ["format_version", "contract_version"]) {
    const hint = facts[key] > 1 ? "take a newer ohlol.mjs: `ohlol embed js`" : "export the checkpoint again";
    if (facts[key] !== 1) fail(where, `${key} is ${show(facts[key])}, expected 1, which this ohlol.mjs knows; ${hint}`);
  }
  const { task, alphabet, labels, label_scheme: scheme, network } = facts;
  const inRange = (size) => Number.isInteger(size) && size >= 1 && size <= 2 ** 20;
  need("task", Object.hasOwn(READINGS, task), "tag, classify or lm");
  need("alphabet", isObject(alphabet) && typeof alphabet.characters === "string", "characters and normalisation");
  const characters = Array.from(alphabet.characters);
  const possible = new Set(characters).size === characters.length && !/[\0\p{Surrogate}]/u.test(alphabet.characters);
  need("alphabet.characters", possible, "each character once, neither NUL nor a surrogate", alphabet.characters);
  const forms = ["NFC", "NFD", "NFKC", "NFKD", "none"];
  need("alphabet.normalisation", forms.includes(alphabet.normalisation), forms.join(", "), alphabet.normalisation);
  const strings = Array.isArray(labels) && labels.every((label) => typeof label === "string");
  need("labels", strings && new Set(labels).size === labels.length, "strings, each there once");
  need("labels", (task === "lm") === !labels.length, task === "lm" ? "none, for lm" : "one at least");
  const marks = task === "tag" && [...labels].sort().join() === "B,I,O,S";
  need("label_scheme", scheme === null || (scheme === "words" && marks), 'null, or "words" with the labels B, I, O, S');
  need(
    "network",
    isObject(network) && ["rnn", "gru", "lstm"].includes(network.cell),
    "an object whose cell is rnn, gru or lstm",
  );
  for (const key of ["num_layers", "hidden_size"])
    need(`network.${key}`, inRange(network[key]), "1 to 1048576", network[key]);
  return Object.defineProperty(facts, EXACT, { value: exact });
}

/** The value of a JSON text that no two readers can take for two things, and each part of it as in `EXACT`. */
function strictJson(text) {
  const value = JSON.parse(text);
  const names = []; // of the objects and arrays that are open
  const typed = text.replace(/("[^"\\]*(?:\\.[^"\\]*)*")(\s*:)?|[[\]{}]|-?\d[\d.eE+-]*/g, (token, string, colon) => {
    if (string) {
      const read = JSON.parse(string);
      if (/\p{Surrogate}/u.test(read)) throw new Error(`a lone surrogate in ${show(read)}`);
      if (colon && names.at(-1).has(read)) throw new Error(`${show(read)} is there twice`);
      if (colon) names.at(-1).add(read);
    } else if (/[[{]/.test(token)) {
      if (names.push(new Set()) > 32) throw new Error("nested deeper than 32");
    } else if (/[\]}]/.test(token)) {
      names.pop();
    } else {
      const whole = !/[.eE]/.test(token);
      if (whole ? token.length > 20 : !Number.isFinite(Number(token))) throw new Error(`the number ${show(token)}`);
      return JSON.stringify(whole ? ["whole", token] : ["number", Number(token)]); // 2.0 is not 2
    }
    return token;
  });
  const sorted = (_, part) => (isObject(part) ? Object.fromEntries(Object.entries(part).sort(byName)) : part);
  const parts = Object.entries(JSON.parse(typed, sorted));
  return [value, Object.fromEntries(parts.map(([key, part]) => [key, JSON.stringify(part)]))];
}

// ---- Protobuf: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto ----

/** Each field of a message: its number, its content (a number or bytes), and its bytes as a whole. Trusts no length. */
function* fieldsOf(bytes) {
  if (!isBytes(bytes)) throw new Error("a number in place of a message");
  for (let at = 0, start = 0; at < bytes.length; start = at) {
    let key, content, size;
    [key, at] = varintAt(bytes, at);
    // protobuf leaves out the bits above, and would see another field than we do: a weight in another file, say.
    if (key >= 2 ** 32) throw new Error(`the number of the field at byte ${start} is too large`);
    const [number, wire] = [Math.floor(key / 8), key % 8];
    if (wire === 0) [content, at] = varintAt(bytes, at);
    else {
      if (wire === 2) [size, at] = varintAt(bytes, at);
      else size = { 1: 8, 5: 4 }[wire];
      if (!(at + size <= bytes.length))
        throw new Error(`field ${number} at byte ${start} is cut off or of no known kind`);
      content = bytes.subarray(at, (at += size));
    }
    yield { number, content, whole: bytes.subarray(start, at) };
  }
}

/** The number at a byte, and the byte after it. Above 2^53 its last digits are lost; none of ours is there. */
function varintAt(bytes, at) {
  let value = 0;
  for (let scale = 1; scale < 2 ** 70 && at < bytes.length; scale *= 128) {
    const byte = bytes[at++];
    value += (byte & 127) * scale;
    if (byte < 128) return [value, at];
  }
  throw new Error(`a number before byte ${at} does not end`);
}

// Where tensors are in a model: for each message, its fields that lead on, and to what.
const LEADS = {
  model: { 7: "graph", 20: "training", 25: "function" },
  training: { 1: "graph", 2: "graph" },
  function: { 7: "node", 11: "attribute" },
  graph: { 1: "node", 5: "tensor", 15: "sparse" },
  node: { 5: "attribute" },
  attribute: { 5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse" },
  sparse: { 1: "tensor", 2: "tensor" },
};

/** Whether a weight is said to stand in another file, which a runtime would go and read. */
function isOutside(bytes, message = "model", depth = 0) {
  if (depth > 64) throw new Error("graphs are nested too deep");
  for (const { number, content } of fieldsOf(bytes)) {
    if (message === "tensor" && (number === 13 || (number === 14 && content !== 0))) return true;
    const lead = LEADS[message]?.[number];
    if (lead && isOutside(content, lead, depth + 1)) return true;
  }
  return false;
}

/** Name, dims and numbers of a TensorProto of float32 or int32 in `raw_data`. */
function tensorOf(bytes) {
  const tensor = { name: "", dims: [], type: 0, raw: new Uint8Array() };
  for (const { number, content } of fieldsOf(bytes)) {
    if (number === 1 && !isBytes(content)) tensor.dims.push(content);
    else if (number === 1)
      for (let at = 0, size; at < content.length; tensor.dims.push(size)) [size, at] = varintAt(content, at);
    else if (number === 2) tensor.type = content;
    else if (number === 8) tensor.name = utf8(content);
    else if (number === 9) tensor.raw = content;
  }
  const Numbers = { 1: Float32Array, 6: Int32Array }[tensor.type];
  if (!Numbers || tensor.raw.length !== 4 * tensor.dims.reduce((a, b) => a * b, 1))
    throw new Error("not a tensor of float32 or int32");
  return { ...tensor, data: new Numbers(Uint8Array.from(tensor.raw).buffer) };
}

// ---- The proof, replayed here: the rule of artifacts/parity.py ----

async function proof(engine) {
  const { files } = engine;
  if (files.single) fail(files.where(MODEL), "a single file has no test data; load the bundle to verify it");
  const rows = [];
  for (let k = 0; files.has(`test_data_set_${k}/input_0.pb`); k++) {
    const name = `test_data_set_${k}`;
    const [texts, expected] = await testData(engine, name);
    const found = { [MODEL]: await engine.batch(texts) };
    if (engine.streams) {
      found[STREAM] = [];
      for (const points of texts) found[STREAM].push(await inPieces(engine, points));
    }
    for (const [file, answers] of Object.entries(found))
      rows.push({ file, case: name, ...compared(engine, answers, expected) });
  }
  if (!rows.length) fail(files.where(MANIFEST), "the bundle holds no test data to verify it by; export it again");
  return { passed: rows.every(({ ok }) => ok), rows };
}

/** The texts of a test, each its code points (T,), and the outputs that each should have. */
async function testData(engine, folder) {
  const read = async (group, names) => {
    const found = {};
    for (const k of names.keys()) {
      const name = `${folder}/${group}_${k}.pb`;
      const bytes = await engine.files.read(name);
      try {
        const tensor = tensorOf(bytes);
        found[tensor.name] = tensor;
      } catch (error) {
        fail(engine.files.where(name), `${lineOf(error)}; export the bundle again`);
      }
    }
    return found;
  };
  const { codepoints, lengths } = await read("input", INPUTS[MODEL]);
  const outputs = await read("output", engine.outputs);
  const [B, T] = codepoints?.dims ?? [];
  let right =
    B >= 1 && T >= 1 && lengths?.data.length === B && lengths.data.every((length) => length >= 1 && length <= T);
  const numbers = {};
  for (const name of engine.outputs) {
    numbers[name] = outputs[name]?.data ?? [];
    right &&=
      numbers[name].length === B * engine.places(T) * engine.width(name) && numbers[name].every(Number.isFinite);
  }
  if (!right)
    fail(engine.files.where(folder), "its names, shapes or numbers are not those of the contract; export it again");
  const texts = Array.from(lengths.data, (length, k) => codepoints.data.slice(k * T, k * T + length));
  return [texts, texts.map((points, k) => engine.cut(numbers, k, points.length, T))];
}

/** The outputs of one text by stream.onnx, in pieces of 1 to 11 code points, the state carried. */
async function inPieces(engine, points) {
  const pieces = [];
  for (let start = 0, size = 1, state; start < points.length; start += size, size = (size * 7 + 3) % 11 || 11) {
    const [outputs, after] = await engine.next(points.slice(start, start + size), state);
    if (engine.facts.task === "classify") pieces.length = 0; // it answers for the text so far
    pieces.push(outputs);
    state = after;
  }
  const whole = (name) =>
    joined(
      name === "label_ids" ? Int32Array : Float32Array,
      pieces.map((piece) => piece[name]),
    );
  return Object.fromEntries(engine.outputs.map((name) => [name, whole(name)]));
}

/** Numbers within the tolerance; labels equal, but for one whose logit is as near to the best as two errors can bring it. */
function compared({ classes, outputs }, found, expected) {
  let [maxError, labels, ok] = [0, true, true];
  const allowed = (answer) => 1e-5 * (1 + answer.reduce((most, x) => Math.max(most, Math.abs(x)), 0));
  const answer = (data, t) => data.subarray(t * classes, (t + 1) * classes);
  found.forEach((row, k) => {
    for (const name of outputs.filter((output) => output !== "label_ids"))
      for (let t = 0; t * classes < row[name].length; t++) {
        const [have, want] = [answer(row[name], t), answer(expected[k][name], t)];
        const error = have.reduce((most, x, c) => Math.max(most, Math.abs(x - want[c])), 0);
        maxError = Math.max(maxError, error);
        ok &&= error <= allowed(want); // a NaN fails too
      }
    row.label_ids?.forEach((id, t) => {
      const logits = answer(expected[k].logits, t);
      const behind = logits[indexOfLargest(logits)] - logits[id];
      labels &&= id === expected[k].label_ids[t] || behind <= 2 * allowed(logits);
    });
  });
  return { maxError, labels, ok: ok && labels };
}

// ---- Small things ----

/** −ln p of an id by the logits (V,). */
function natsOf(logits, id) {
  const highest = logits[indexOfLargest(logits)];
  return Math.log(logits.reduce((sum, x) => sum + Math.exp(x - highest), 0)) + highest - logits[id];
}

function indexOfLargest(numbers) {
  return numbers.reduce((best, x, k) => (x > numbers[best] ? k : best), 0);
}

function joined(Numbers, parts) {
  const found = new Numbers(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    found.set(part, at);
    at += part.length;
  }
  return found;
}

function utf8(bytes = new Uint8Array()) {
  return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
}

function isBytes(value) {
  return Object.prototype.toString.call(value) === "[object Uint8Array]"; // one of another realm too
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** A name that means nothing here is refused: else a slip would change nothing, and nobody would know. */
function checkKeys(what, given, names) {
  const told = `an object of ${names.join(", ")}`;
  if (!isObject(given)) throw new TypeError(`${what} is ${kindOf(given)}, expected ${told}`);
  const plain = (name) => name.toLowerCase().replace(/[-_]/g, "");
  for (const key of Object.keys(given)) {
    const meant = names.find((name) => plain(name) === plain(key));
    if (meant !== key)
      throw new TypeError(`${what} has \`${key}\`, expected ${told}${meant ? `; did you mean \`${meant}\`?` : ""}`);
  }
}

function byName([a], [b]) {
  return a < b ? -1 : 1;
}

function wrongTask(task, call) {
  return new TypeError(`this model is for ${task} and has no ${call}: call ${CALLS[task]}`);
}

function tooLong(length, { maxLength, facts }) {
  const or = facts.network.bidirectional ? "" : `, or load a bundle that has ${STREAM}`;
  return new RangeError(`a text of ${length} characters, expected at most ${maxLength}; cut it into shorter ones${or}`);
}

function kindOf(value) {
  return value === null ? "null" : Array.isArray(value) ? "an array" : typeof value;
}

function show(value) {
  const shown = (typeof value === "number" ? undefined : JSON.stringify(value)) ?? String(value);
  return shown.length > 60 ? `${shown.slice(0, 60)}…` : shown;
}

function short(digest) {
  return `${digest.slice(0, 12)}…`;
}

function lineOf(error) {
  return String(error?.message ?? error)
    .split("\n")[0]
    .slice(0, 200);
}

function damaged(where, how) {
  fail(where, `damaged or changed: ${how}; copy or export it again`);
}

function fail(where, what) {
  throw new Error(`${where}: ${what}`);
}

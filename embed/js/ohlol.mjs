// ohlol.mjs: a bundle of ohlol on ONNX Runtime, in Node and in the browser. Text in, labels out; docs/javascript.md.
// The app brings onnxruntime-web or onnxruntime-node; nothing else is needed. Types are in ohlol.d.ts.

const FORMAT = "ohlol-bundle";
const VERSIONS = { format_version: 1, contract_version: 1 };
const TASK_CALLS = { tag: "tag(text)", classify: "classify(text)", lm: "score(text) or generate(prompt)" };
const FORMS = ["NFC", "NFD", "NFKC", "NFKD", "none"];
const [MODEL, STREAM, MANIFEST] = ["model.onnx", "stream.onnx", "manifest.json"];
const INPUTS = { [MODEL]: ["codepoints", "lengths"], [STREAM]: ["codepoints", "state"] };
const UNKNOWN = 1;
const RESERVED = 2; // ids below this are not characters
const TOLERANCE = 1e-5; // of the proof; times 1 + the answer's largest number
const LONGEST = 65_536; // characters of a text that can only be read whole
const CELLS = 16_384; // characters of a batch, padding included
const STEP = 8_192; // characters of a long text that stream.onnx reads at once
const NUMBERS = 2 ** 22; // in one output of a call; one text that can only be read whole may have four times as many
const MOST_JOINED = 4_096; // characters that join each other; text that people write needs about 30
const LARGEST = 2 ** 20; // size or number of layers
const MOST_NESTED = 32; // of JSON
const NODE = Boolean(globalThis.process?.versions?.node);

/** Loads a bundle, or a single .onnx file of one. See `load` in ohlol.d.ts. */
export async function load(source, options = {}) {
  if (typeof options !== "object" || options === null)
    throw new TypeError(`the options are ${kindOf(options)}, expected an object such as { ort }`);
  const files = filesOf(source);
  const ort = await runtime(options.ort);
  if (files.single) {
    const bytes = await files.read(MODEL);
    const facts = await factsOf(bytes, files.where(MODEL));
    return new Model(await Engine.open(ort, options.session, files, facts, bytes));
  }
  const where = files.where(MANIFEST);
  const manifest = readFacts(decoded(await files.read(MANIFEST), where), where);
  checkFiles(manifest, where);
  const checked = { ...files, read: (name) => readChecked(files, manifest, name), has: (name) => name in manifest.files };
  const bytes = await checked.read(MODEL);
  const facts = await factsOf(bytes, files.where(MODEL), manifest);
  return new Model(await Engine.open(ort, options.session, checked, facts, bytes));
}

// ---- The model, as an app sees it ----

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
    return spelled(normalised(checkText(text), this.#engine.form));
  }

  async tag(texts) {
    return this.#engine.answers("tag", texts);
  }

  async classify(texts) {
    return this.#engine.answers("classify", texts);
  }

  async score(texts) {
    return this.#engine.answers("lm", texts);
  }

  async stream() {
    this.#engine.needStream();
    await this.#engine.session(STREAM);
    return new Stream(this.#engine);
  }

  generate(prompt = "", sampling = {}) {
    const engine = this.#engine;
    if (this.task !== "lm") throw wrongTask(this.task, "generate(prompt)");
    engine.needStream();
    if (!engine.characters.length) throw new Error("the model's alphabet is empty, so there is nothing to make");
    checkText(prompt, "the prompt");
    const { length, stops, ...rules } = checkSampling(sampling);
    return until(made(engine, spelled(normalised(prompt, engine.form)), rules), stops, length);
  }

  async verify() {
    return proof(this.#engine);
  }

  async release() {
    await this.#engine.release();
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
    const turn = this.#turn.then(() => this.#answer(piece, end));
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
    const whole = held + piece;
    const cut = end ? whole.length : ready(whole, this.#engine.form);
    const characters = normalised(whole.slice(0, cut), this.#engine.form, offset);
    const reading = this.#engine.reading(last);
    const after = await this.#engine.readOn(pointsOf(characters), reading, state);
    this.#now = { state: after, last: reading.last, held: whole.slice(cut), offset: offset + cut, ended: end };
    return reading.result(characters);
  }
}

// ---- What a task makes of the outputs of one text, part after part ----
// `last` is what a stream carries from piece to piece; `add` takes the code points (T,) and their outputs (T, C).

class Tags {
  static asks = ["label_ids", "probabilities"];
  #ids = [];
  #probabilities = [];

  constructor(engine) {
    this.engine = engine;
  }

  add(points, { label_ids, probabilities }) {
    for (const id of label_ids) this.#ids.push(id);
    this.#probabilities.push(probabilities);
  }

  result(characters) {
    const { classes, facts, ids } = this.engine;
    const probabilities = joined(Float32Array, this.#probabilities);
    const labels = characters.map(({ character, start, end }, t) => {
      const id = this.#ids[t];
      const probability = probabilities[t * classes + id];
      return { character, start, end, label: facts.labels[id], probability, known: ids.has(character) };
    });
    const found = { text: spelled(characters), labels, probabilities };
    return facts.label_scheme === "words" ? { ...found, ...marked(labels) } : found;
  }
}

class Label {
  static asks = ["label_ids", "probabilities"];

  constructor(engine, last) {
    this.engine = engine;
    this.last = last;
  }

  add(points, { label_ids, probabilities }) {
    this.last = { id: label_ids[0], probabilities };
  }

  result(characters) {
    const text = spelled(characters);
    if (!this.last) return { text, label: null, probability: null, probabilities: [] };
    const { id, probabilities } = this.last;
    const all = this.engine.facts.labels.map((label, k) => ({ label, probability: probabilities[k] }));
    const { label, probability } = all[id];
    return { text, label, probability, probabilities: all.sort((a, b) => b.probability - a.probability) };
  }
}

class Score {
  static asks = ["logits"];
  #nats = 0;
  #count = 0;

  constructor(engine, last) {
    this.engine = engine;
    this.last = last; // the logits after the last character
  }

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

const READINGS = { tag: Tags, classify: Label, lm: Score };

/** The words and sentences that labels mark; docs/format.md. */
function marked(labels) {
  const [words, sentences] = [[], []]; // from and to, in characters
  labels.forEach(({ label }, t) => {
    if (label === "B" || label === "S" || (label === "I" && (labels[t - 1]?.label ?? "O") === "O"))
      words.push({ from: t, to: t + 1 });
    else if (label === "I") words.at(-1).to = t + 1;
  });
  for (const word of words)
    if (!sentences.length || labels[word.from].label === "S") sentences.push({ ...word });
    else sentences.at(-1).to = word.to;
  const cut = ({ from, to }) => ({
    text: spelled(labels.slice(from, to)),
    start: labels[from].start,
    end: labels[to - 1].end,
  });
  return { words: words.map(cut), sentences: sentences.map(cut) };
}

// ---- Sessions and calls ----

class Engine {
  #sessions = new Map();

  constructor(ort, options, files, facts) {
    const { task, alphabet, labels, network } = facts;
    this.ort = ort;
    this.options = options;
    this.files = files;
    this.facts = facts;
    this.form = alphabet.normalisation;
    this.characters = Array.from(alphabet.characters);
    this.ids = new Map(this.characters.map((character, k) => [character, k + RESERVED]));
    this.classes = task === "lm" ? this.characters.length + RESERVED : labels.length;
    this.streams = files.has(STREAM);
    const most = (characters, numbers) => Math.max(1, Math.min(characters, Math.floor(numbers / this.classes)));
    this.cells = most(CELLS, NUMBERS);
    this.step = most(STEP, NUMBERS / 4);
    this.maxLength = this.streams ? Infinity : most(LONGEST, NUMBERS * 4);
    this.stateDims = [network.num_layers * (network.cell === "lstm" ? 2 : 1), 1, network.hidden_size];
  }

  static async open(ort, options, files, facts, bytes) {
    const engine = new Engine(ort, options, files, facts);
    engine.#sessions.set(MODEL, await engine.#opened(MODEL, bytes));
    return engine;
  }

  /** The session of a file of the bundle, which is read when it is first needed. */
  session(name) {
    if (!this.#sessions.has(name)) {
      const opening = this.files.read(name).then(async (bytes) => {
        await factsOf(bytes, this.files.where(name), this.facts, name);
        return this.#opened(name, bytes);
      });
      this.#sessions.set(name, opening);
      opening.catch(() => this.#sessions.delete(name)); // the network may be back the next time
    }
    return this.#sessions.get(name);
  }

  async #opened(name, bytes) {
    const where = this.files.where(name);
    const extra = { session: { intra_op: { allow_spinning: "0" } } };
    const ours = { intraOpNumThreads: 1, interOpNumThreads: 1, logSeverityLevel: 4, extra };
    const session = await inTurn(() => this.ort.InferenceSession.create(bytes, { ...ours, ...this.options })).catch(
      (error) => fail(where, `ONNX Runtime cannot open it (${lineOf(error)}); copy or export it again`),
    );
    const takes = [...session.inputNames].sort().join(" and ");
    if (takes !== INPUTS[name].join(" and "))
      fail(where, `takes ${takes}, expected ${INPUTS[name].join(" and ")}; load the bundle, or the ${MODEL} in it`);
    return session;
  }

  async release() {
    const sessions = [...this.#sessions.values()];
    this.#sessions.clear();
    this.#sessions.set(MODEL, Promise.reject(new Error("the model was released; load it again")));
    this.#sessions.get(MODEL).catch(() => {});
    this.streams = false;
    for (const session of sessions) await inTurn(async () => (await session).release());
  }

  needStream() {
    if (this.streams) return;
    const { bidirectional } = this.facts.network;
    const why = bidirectional
      ? "the network reads both ways, so its answers need the end of the text; give it whole texts"
      : `there is no ${STREAM}; export it with --formats onnx,stream, and load the whole bundle`;
    fail(this.files.where(STREAM), why);
  }

  reading(last) {
    return new READINGS[this.facts.task](this, last);
  }

  /** `asks`, and each output's numbers for `rows` of `time` code points, as the contract has them. */
  async run(name, asks, feeds, rows, time) {
    const session = await this.session(name);
    const found = await inTurn(() => session.run(feeds, asks)).catch((error) =>
      fail(this.files.where(name), `ONNX Runtime cannot answer (${lineOf(error)})`),
    );
    const answers = rows * (this.facts.task === "classify" ? 1 : time);
    const [states, , hidden] = this.stateDims;
    const sizes = { label_ids: answers, next_state: states * rows * hidden };
    for (const output of asks) {
      if (found[output].data.length !== (sizes[output] ?? answers * this.classes))
        fail(this.files.where(name), `\`${output}\` is (${found[output].dims}), not as in the contract; export it again`);
    }
    return Object.fromEntries(asks.map((output) => [output, found[output].data]));
  }

  /** The outputs `asks` of a padded batch of `rows`, each the code points (T,) int32 of a text. */
  async batch(asks, rows) {
    const time = Math.max(...rows.map((points) => points.length));
    const padded = new Int32Array(rows.length * time);
    rows.forEach((points, k) => padded.set(points, k * time));
    const lengths = Int32Array.from(rows, (points) => points.length);
    const feeds = {
      codepoints: new this.ort.Tensor("int32", padded, [rows.length, time]),
      lengths: new this.ort.Tensor("int32", lengths, [rows.length]),
    };
    return [await this.run(MODEL, asks, feeds, rows.length, time), time];
  }

  /** The outputs `asks` of the next code points of one text, and the state after them. */
  async next(asks, points, state = new Float32Array(this.stateDims.reduce((a, b) => a * b))) {
    const feeds = {
      codepoints: new this.ort.Tensor("int32", points, [1, points.length]),
      state: new this.ort.Tensor("float32", state, this.stateDims),
    };
    const { next_state, ...outputs } = await this.run(STREAM, [...asks, "next_state"], feeds, 1, points.length);
    return [outputs, next_state];
  }

  /** Tells `reading` the outputs of code points that stream.onnx reads; the state after them. */
  async readOn(points, reading, state) {
    for (let start = 0; start < points.length; start += this.step) {
      const part = points.slice(start, start + this.step);
      const [outputs, after] = await this.next(reading.constructor.asks, part, state);
      reading.add(part, outputs);
      state = after;
    }
    return state;
  }

  /** The answers to a text or to an array of them. */
  async answers(task, given) {
    if (task !== this.facts.task) throw wrongTask(this.facts.task, TASK_CALLS[task]);
    const texts = Array.isArray(given) ? Array.from(given) : [given];
    if (!texts.length) throw new RangeError("an array of no texts: give one at least");
    texts.forEach((text, k) => checkText(text, Array.isArray(given) ? `text ${k} of the array` : "the text"));
    const rows = texts.map((text) => {
      const characters = normalised(text, this.form);
      if (characters.length > this.maxLength)
        throw new RangeError(
          `a text of ${characters.length} characters, expected at most ${this.maxLength}; cut it into shorter ones` +
            (this.facts.network.bidirectional ? "" : `, or load a bundle that has ${STREAM}`),
        );
      return { characters, points: pointsOf(characters), reading: this.reading() };
    });
    const long = (row) => this.streams && row.points.length > this.cells;
    for (const row of rows.filter(long)) await this.readOn(row.points, row.reading);
    const whole = rows.filter((row) => row.points.length && !long(row));
    for (const batch of batches(whole, this.cells)) await this.#answerBatch(batch);
    const results = rows.map(({ characters, reading }) => reading.result(characters));
    return Array.isArray(given) ? results : results[0];
  }

  async #answerBatch(rows) {
    const { asks } = READINGS[this.facts.task];
    const [outputs, time] = await this.batch(
      asks,
      rows.map((row) => row.points),
    );
    rows.forEach(({ points, reading }, k) => {
      const [places, kept] = this.facts.task === "classify" ? [1, 1] : [time, points.length];
      const parts = Object.entries(outputs).map(([name, data]) => {
        const width = name === "label_ids" ? 1 : this.classes;
        return [name, data.subarray(k * places * width, (k * places + kept) * width)];
      });
      reading.add(points, Object.fromEntries(parts));
    });
  }
}

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
  const name = NODE ? "onnxruntime-node" : "onnxruntime-web";
  if (given === undefined && NODE) process.env.ORT_DISABLE_TELEMETRY ??= "1"; // it reports home by default
  const module =
    given ??
    (await import(/* webpackIgnore: true */ /* @vite-ignore */ name).catch((error) => {
      throw new Error(`${name} cannot be imported (${lineOf(error)}); install it, or give it: load(source, { ort })`);
    }));
  const ort = module.InferenceSession ? module : (module.default ?? module);
  if (typeof ort.InferenceSession?.create !== "function" || typeof ort.Tensor !== "function")
    throw new TypeError(`ort is ${kindOf(given)}, expected the module onnxruntime-web or onnxruntime-node`);
  if (ort.env?.wasm && ort.env.wasm.numThreads === undefined) ort.env.wasm.numThreads = 1; // small networks gain nothing
  return ort;
}

// ---- Text ----

const OFTEN = "\0-\u02ff\u3400-\u9fff\uac00-\ud7a3"; // none of these joins what is before it
const BEGINS = new RegExp(`^[${OFTEN}]`);
const LONG_RUN = new RegExp(`[^${OFTEN}]{${MOST_JOINED}}`, "u");

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
  let [start, at, count] = [0, 0, 0];
  for (const character of text) {
    if (at > start && begins(character)) {
      yield text.slice(start, at);
      [start, count] = [at, 0];
    }
    at += character.length;
    if (++count > MOST_JOINED) throw tooManyJoined(count, form);
  }
  yield text.slice(start);
}

/** How many UTF-16 units of `text` no later piece can change. */
function ready(text, form) {
  if (form === "none") return /[\ud800-\udbff]$/.test(text) ? text.length - 1 : text.length; // half of a pair
  let at = text.length;
  const characters = Array.from(text.slice(-2 * MOST_JOINED - 2)).reverse();
  for (const [count, character] of characters.entries()) {
    if (count > MOST_JOINED) throw tooManyJoined(count, form);
    if (/[\p{Cc}\p{Zl}\p{Zp}\p{Zs}]/u.test(character)) return at; // nothing that follows joins it
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

function tooManyJoined(count, form) {
  return new RangeError(
    `more than ${MOST_JOINED} combining characters in a row, which ${form} would have to sort; is it text?`,
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
  return text;
}

// ---- Text that is made: the rules of docs/streams.md ----

function checkSampling(sampling) {
  if (typeof sampling !== "object" || sampling === null)
    throw new TypeError(`the sampling is ${kindOf(sampling)}, expected an object such as { temperature: 0.8 }`);
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
  return { length, temperature, topK, topP, random, stops: possible, cut: sampling.topP !== undefined };
}

/** Characters that follow the prompt, without end. */
async function* made(engine, prompt, { random, ...rules }) {
  const { characters, classes, step } = engine;
  let points = pointsOf(normalised(prompt || (engine.ids.has("\n") ? "\n" : ""), "none"));
  let [logits, state] = [new Float32Array(classes)]; // of nothing: all characters are equally likely
  for (;;) {
    for (let start = 0; start < points.length; start += step) {
      const [outputs, after] = await engine.next(["logits"], points.slice(start, start + step), state);
      logits = outputs.logits.slice(-classes);
      state = after;
    }
    const p = drawnBy(logits, rules);
    const number = random();
    if (!(number >= 0 && number < 1)) throw new RangeError(`random() gave ${show(number)}, expected a number in [0, 1)`);
    const drawn = number * p.reduce((sum, x) => sum + x, 0);
    let sum = 0;
    const id = p.findIndex((x) => (sum += x) > drawn);
    yield characters[id - RESERVED];
    points = Int32Array.of(characters[id - RESERVED].codePointAt(0));
  }
}

/** What each id is drawn by, (V,) float64: never padding or unknown; temperature, then topK, then topP. */
function drawnBy(logits, { temperature, topK, topP, cut }) {
  const exact = Float64Array.from(logits);
  exact.fill(-Infinity, 0, RESERVED);
  const best = indexOfLargest(exact);
  const likeliest = exact[best];
  if (temperature === 0) return exact.map((_, id) => (id === best ? 1 : 0));
  const p = shares(exact.map((logit) => Math.exp((logit - likeliest) / temperature)));
  if (topK === Infinity && !cut) return p;
  // By the logits, not by p: a high temperature makes equals of them. Of equals, those of lower ids come first.
  let order = Array.from(exact.keys()).sort((a, b) => exact[b] - exact[a] || a - b).slice(0, topK); // prettier-ignore
  if (cut) {
    const all = order.reduce((sum, id) => sum + p[id], 0);
    let sum = 0;
    const last = order.findIndex((id) => (sum += p[id]) / all >= topP);
    order = last < 0 ? order : order.slice(0, last + 1);
  }
  const kept = new Float64Array(p.length);
  for (const id of order) kept[id] = p[id];
  return shares(kept);
}

function shares(p) {
  const sum = p.reduce((total, x) => total + x, 0);
  return p.map((x) => x / sum);
}

/** At most `length` of the characters made, up to the first stop string; what could become one waits. */
async function* until(characters, stops, length) {
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

/** `{ single, where(name), read(name), has(name) }` for what `load` takes. */
function filesOf(source) {
  const none = () => false;
  if (source instanceof ArrayBuffer) source = new Uint8Array(source);
  if (isBytes(source)) return { single: true, where: () => "the bytes given", read: async () => source, has: none };
  const place = placeOf(source);
  if (place) {
    const at = (name) => (place.single ? place.at("") : place.at(name));
    return { single: place.single, where: (name) => String(at(name)), read: (name) => readFrom(place, at(name)), has: none };
  }
  if (typeof source !== "object" || source === null || Array.isArray(source))
    throw new TypeError(`the source is ${kindOf(source)}, expected a path, a URL, bytes or the files of a bundle by name`);
  const read = async (name) =>
    isBytes(source[name]) ? source[name] : fail(name, `is ${kindOf(source[name])} among the files given, expected a Uint8Array`);
  return { single: false, where: (name) => name, read, has: none };
}

/** A path or URL: `at(name)` is that of a file of the bundle, `at("")` its own; `disk` for what Node reads itself. */
function placeOf(source) {
  const isUrl = source instanceof URL || (typeof source === "string" && /^(https?|file|data|blob):/i.test(source));
  if (!isUrl && typeof source !== "string") return undefined;
  if (!source) throw new TypeError("the source is an empty string, expected a path or a URL");
  if (NODE && !isUrl) {
    const at = (name) => (name ? `${source.replace(/[\\/]+$/, "")}/${name}` : source);
    return { single: source.endsWith(".onnx"), at, disk: true };
  }
  const url = new URL(source, globalThis.document?.baseURI ?? globalThis.location?.href);
  const single = /^(data|blob):$/.test(url.protocol) || url.pathname.endsWith(".onnx");
  const at = (name) => {
    const file = new URL(url);
    if (name) file.pathname = `${url.pathname.replace(/\/+$/, "")}/${name}`;
    return file;
  };
  return { single, at, disk: NODE && url.protocol === "file:" };
}

async function readFrom(place, file) {
  const again = "expected a bundle made by `ohlol export`, or an .onnx file of one";
  if (place.disk) {
    const { readFile, realpath } = process.getBuiltinModule("node:fs/promises"); // no import: bundlers would look for it
    try {
      if (!place.single) {
        const [real, root] = [await realpath(file), (await realpath(place.at(""))).replace(/[\\/]$/, "")];
        if (!real.startsWith(root) || !/[\\/]/.test(real[root.length]))
          throw new Error("a link that leaves the bundle; refused");
      }
      return await readFile(file);
    } catch (error) {
      return fail(String(file), `cannot be read (${lineOf(error)}); ${again}`);
    }
  }
  const response = await fetch(file).catch((error) => fail(String(file), `cannot be fetched (${lineOf(error)}); ${again}`));
  if (!response.ok) fail(String(file), `cannot be fetched (HTTP ${response.status}); ${again}`);
  return new Uint8Array(await response.arrayBuffer());
}

/** The bytes of a file of a bundle, which are those that the manifest lists. */
async function readChecked(files, manifest, name) {
  const entry = manifest.files[name];
  const where = files.where(name);
  if (!entry) fail(where, `the manifest lists no ${name}; export the bundle again`);
  const bytes = await files.read(name);
  const again = "copy or export the bundle again";
  if (bytes.length !== entry.bytes)
    fail(where, `damaged or changed: it has ${bytes.length} bytes, the manifest says ${entry.bytes}; ${again}`);
  const found = await sha256(bytes);
  if (found && found !== entry.sha256)
    fail(where, `damaged or changed: its sha256 is ${found.slice(0, 12)}…, the manifest says ${entry.sha256.slice(0, 12)}…; ${again}`);
  return bytes;
}

/** Lower-case hex; undefined where there is no crypto.subtle: a page that did not come by https or from localhost. */
async function sha256(bytes) {
  if (!globalThis.crypto?.subtle) return undefined;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// ---- Facts: docs/format.md ----

/**
 * The facts in the metadata of an .onnx file, whose graph and weights are those that its digest is of. ONNX Runtime's
 * JavaScript does not give metadata, so the file is read here. `beside`: what they must agree with.
 */
async function factsOf(bytes, where, beside, name = MODEL) {
  const texts = new Map();
  const rest = [];
  let graphs = 0;
  try {
    for (const { number, content, whole } of fieldsOf(bytes)) {
      graphs += number === 7;
      if (number !== 14) rest.push(whole);
      else {
        const [key, value] = [1, 2].map((wanted) => utf8([...fieldsOf(content)].findLast((f) => f.number === wanted)?.content));
        if (texts.has(key)) throw new Error(`${show(key)} is there twice`);
        texts.set(key, value);
      }
    }
    if (!graphs) throw new Error("there is no graph in it");
    if (isOutside(bytes)) throw new Error("a weight stands in another file");
  } catch (error) {
    fail(where, `not an ONNX file of ohlol, or damaged (${lineOf(error)}); copy or export it again`);
  }
  const ours = [...texts].filter(([key]) => key.startsWith("ohlol."));
  if (!ours.length) fail(where, "an ONNX file that ohlol did not export (its metadata names no alphabet); use `ohlol export`");
  const said = texts.get("ohlol.sha256")?.replaceAll('"', "");
  const found = said === undefined ? undefined : await sha256(joined(Uint8Array, rest));
  if (found && found !== said)
    fail(where, `damaged or changed: the sha256 of its graph and weights is ${found.slice(0, 12)}…, its metadata says ${show(said.slice(0, 12))}; copy or export it again`);
  const json = ours.map(([key, value]) => `${JSON.stringify(key.slice("ohlol.".length))}:${value}`);
  const facts = readFacts(`{${json.join(",")}}`, where);
  const own = name === MODEL ? ["files", "sha256"] : ["files", "sha256", "inputs", "outputs"];
  for (const key of beside ? Object.keys(facts.canonical) : [])
    if (!own.includes(key) && facts.canonical[key] !== beside.canonical[key])
      fail(where, `\`${key}\` differs from that of ${name === MODEL ? MANIFEST : MODEL}; copy or export the bundle again`);
  return facts;
}

/** The facts in a JSON text, checked; `canonical` has each as a string that is the same for the same value. */
function readFacts(text, where) {
  let facts, canonical;
  try {
    [facts, canonical] = strictJson(text);
  } catch (error) {
    fail(where, `not JSON as in docs/format.md (${lineOf(error)}); copy or export it again`);
  }
  const need = (key, holds, expected, value = facts[key]) => {
    if (!holds) fail(where, `${key} is ${show(value)}, expected ${expected}; copy or export it again`);
  };
  const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
  if (!isObject(facts) || facts.format !== FORMAT)
    fail(where, `format is ${show(facts?.format)}, expected "${FORMAT}": not a bundle made by \`ohlol export\``);
  for (const [key, known] of Object.entries(VERSIONS)) {
    need(key, Number.isInteger(facts[key]), "a whole number");
    const hint = facts[key] > known ? "take a newer ohlol.mjs: `ohlol embed js`" : "export the checkpoint again";
    if (facts[key] !== known) fail(where, `${key} is ${facts[key]}, expected ${known}, which this ohlol.mjs knows; ${hint}`);
  }
  const { task, alphabet, labels, label_scheme: scheme, network } = facts;
  need("task", Object.hasOwn(READINGS, task), "tag, classify or lm");
  need("alphabet", isObject(alphabet) && typeof alphabet.characters === "string", "characters and normalisation");
  const characters = Array.from(alphabet.characters);
  const possible = new Set(characters).size === characters.length && !/[\0\p{Surrogate}]/u.test(alphabet.characters);
  need("alphabet.characters", possible, "each character once, neither NUL nor a surrogate", alphabet.characters);
  need("alphabet.normalisation", FORMS.includes(alphabet.normalisation), FORMS.join(", "), alphabet.normalisation);
  const strings = Array.isArray(labels) && labels.every((label) => typeof label === "string");
  need("labels", strings && new Set(labels).size === labels.length, "strings, each there once");
  need("labels", (task === "lm") === !labels.length, task === "lm" ? "none, for lm" : "one at least");
  const words = task === "tag" && [...labels].sort().join() === "B,I,O,S";
  need("label_scheme", scheme === null || (scheme === "words" && words), 'null, or "words" with the labels B, I, O, S');
  need("network", isObject(network) && ["rnn", "gru", "lstm"].includes(network.cell), "an object whose cell is rnn, gru or lstm");
  for (const key of ["num_layers", "hidden_size"]) {
    const holds = Number.isInteger(network[key]) && network[key] >= 1 && network[key] <= LARGEST;
    need(`network.${key}`, holds, `1 to ${LARGEST}`, network[key]);
  }
  Object.defineProperty(facts, "canonical", { value: canonical });
  return facts;
}

function checkFiles({ files }, where) {
  const again = "copy or export the bundle again";
  if (typeof files !== "object" || files === null || !Object.hasOwn(files, MODEL))
    fail(where, `\`files\` is ${show(files)}, expected an object that lists ${MODEL}; ${again}`);
  for (const [name, entry] of Object.entries(files)) {
    if (/[\\:\p{C}]|^$/u.test(name) || name.split("/").some((part) => ["", ".", ".."].includes(part)))
      fail(where, `${show(name)} is not the name of a file of a bundle; refused`);
    if (!/^[0-9a-f]{64}$/.test(entry?.sha256) || !Number.isInteger(entry.bytes) || entry.bytes < 0)
      fail(where, `\`files\` has no sha256 and bytes of ${show(name)}; ${again}`);
  }
}

/** The value of a JSON text that no two readers can take for two things, and each of its parts as a canonical string. */
function strictJson(text) {
  const value = JSON.parse(text);
  const names = []; // of the objects and arrays that are open
  const exact = text.replace(/("[^"\\]*(?:\\.[^"\\]*)*")(\s*:)?|[[\]{}]|-?\d[\d.eE+-]*/g, (token, string, colon) => {
    if (string) {
      const read = JSON.parse(string);
      if (/\p{Surrogate}/u.test(read)) throw new Error(`a lone surrogate in ${show(read)}`);
      if (colon && names.at(-1).has(read)) throw new Error(`${show(read)} is there twice`);
      if (colon) names.at(-1).add(read);
    } else if (/[[{]/.test(token)) {
      if (names.push(new Set()) > MOST_NESTED) throw new Error(`nested deeper than ${MOST_NESTED}`);
    } else if (/[\]}]/.test(token)) names.pop();
    else {
      const whole = !/[.eE]/.test(token);
      if (whole ? token.length > 20 : !Number.isFinite(Number(token))) throw new Error(`the number ${show(token)}`);
      return JSON.stringify(whole ? ["whole", token] : ["number", String(Number(token))]); // 2.0 is not 2
    }
    return token;
  });
  const sorted = JSON.parse(exact, (_, part) =>
    typeof part === "object" && part !== null && !Array.isArray(part) ? Object.fromEntries(Object.entries(part).sort()) : part,
  );
  return [value, Object.fromEntries(Object.entries(sorted).map(([key, part]) => [key, JSON.stringify(part)]))];
}

// ---- Protobuf: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto ----

/** Each field of a message: its number, its content (a number or bytes), and its bytes as a whole. Trusts no length. */
function* fieldsOf(bytes) {
  if (!isBytes(bytes)) throw new Error("a number in place of a message");
  let at = 0;
  while (at < bytes.length) {
    const start = at;
    let key, content, size;
    [key, at] = varintAt(bytes, at);
    const [number, wire] = [Math.floor(key / 8), key % 8];
    if (wire === 0) [content, at] = varintAt(bytes, at);
    else {
      if (wire === 2) [size, at] = varintAt(bytes, at);
      else size = { 1: 8, 5: 4 }[wire];
      if (!(at + size <= bytes.length)) throw new Error(`field ${number} at byte ${start} is cut off or of no known kind`);
      content = bytes.subarray(at, at + size);
      at += size;
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
    if (message === "tensor" ? number === 13 || (number === 14 && content !== 0) : false) return true;
    const lead = LEADS[message]?.[number];
    if (lead && isOutside(content, lead, depth + 1)) return true;
  }
  return false;
}

/** Name, dims and numbers of a TensorProto of float32 or int32 in `raw_data`. */
function tensorOf(bytes) {
  const found = { name: "", dims: [], type: 0, raw: new Uint8Array() };
  for (const { number, content } of fieldsOf(bytes)) {
    if (number === 1 && !isBytes(content)) found.dims.push(content);
    else if (number === 1) for (let at = 0, size; at < content.length; found.dims.push(size)) [size, at] = varintAt(content, at);
    else if (number === 2) found.type = content;
    else if (number === 8) found.name = utf8(content);
    else if (number === 9) found.raw = content;
  }
  const Numbers = { 1: Float32Array, 6: Int32Array }[found.type];
  if (!Numbers || found.raw.length !== 4 * found.dims.reduce((a, b) => a * b, 1)) throw new Error("not a tensor of float32 or int32");
  return { name: found.name, dims: found.dims, data: new Numbers(Uint8Array.from(found.raw).buffer) };
}

// ---- The proof, replayed here ----

async function proof(engine) {
  const { files, facts } = engine;
  if (files.single) throw new Error(`${files.where(MODEL)}: a single file has no test data; load the bundle to verify it`);
  const outputs = ["logits", "probabilities", ...(facts.task === "lm" ? [] : ["label_ids"])];
  const rows = [];
  for (let k = 0; files.has(`test_data_set_${k}/input_0.pb`); k++) {
    const name = `test_data_set_${k}`;
    const read = async (group, names) => {
      const tensors = names.map(async (_, n) => {
        const file = `${name}/${group}_${n}.pb`;
        try {
          return tensorOf(await files.read(file));
        } catch (error) {
          return fail(files.where(file), `${lineOf(error)}; export the bundle again`);
        }
      });
      return Object.fromEntries((await Promise.all(tensors)).map((tensor) => [tensor.name, tensor]));
    };
    const texts = rowsOf(await read("input", INPUTS[MODEL]), files.where(name));
    const expected = await read("output", outputs);
    for (const file of engine.streams ? [MODEL, STREAM] : [MODEL]) {
      const found = await (file === MODEL ? engine.batch(outputs, texts).then(([all]) => all) : inPieces(engine, outputs, texts));
      rows.push({ file, case: name, ...compared(found, expected, outputs, engine.classes) });
    }
  }
  if (!rows.length) fail(files.where(MANIFEST), "holds no test data to verify it by; export it again");
  return { passed: rows.every(({ ok }) => ok), rows };
}

/** The texts of a test's batch, which a runtime could end the process by where they are outside of the contract. */
function rowsOf({ codepoints, lengths }, where) {
  const [B, T] = codepoints?.dims ?? [];
  const right = B >= 1 && T >= 1 && lengths?.data.length === B && lengths.data.every((length) => length >= 1 && length <= T);
  if (!right) fail(where, "its shapes or lengths are not those of the contract; export the bundle again");
  return Array.from(lengths.data, (length, k) => codepoints.data.slice(k * T, k * T + length));
}

/** The outputs of `model.onnx`, by stream.onnx: each row by itself, cut in pieces of 1 to 11, the state carried. */
async function inPieces(engine, outputs, texts) {
  const T = Math.max(...texts.map((points) => points.length));
  const places = engine.facts.task === "classify" ? 1 : T;
  const widths = Object.fromEntries(outputs.map((name) => [name, name === "label_ids" ? 1 : engine.classes]));
  const found = Object.fromEntries(
    outputs.map((name) => {
      const Numbers = name === "label_ids" ? Int32Array : Float32Array;
      return [name, new Numbers(texts.length * places * widths[name]).fill(name === "label_ids" ? -1 : 0)];
    }),
  );
  for (const [k, points] of texts.entries()) {
    let state;
    for (let start = 0, size = (k % 11) + 1; start < points.length; start += size, size = ((size * 7) % 11) + 1) {
      const [piece, after] = await engine.next(outputs, points.slice(start, start + size), state);
      for (const name of outputs) found[name].set(piece[name], (k * places + (places > 1 ? start : 0)) * widths[name]);
      state = after;
    }
  }
  return found;
}

/** One row of the table: numbers within the tolerance, labels equal, ties within it aside. */
function compared(found, expected, outputs, classes) {
  let [maxError, ok, labels] = [0, true, true];
  const allowed = (answer) => TOLERANCE * (1 + answer.reduce((most, x) => Math.max(most, Math.abs(x)), 0));
  const answers = (data) => (k) => data.subarray(k * classes, (k + 1) * classes);
  for (const name of outputs) {
    const [have, want] = [found[name], expected[name]?.data];
    if (have.length !== want?.length || !want.every(Number.isFinite)) ok = false;
    else if (name === "label_ids") {
      const logits = answers(expected.logits.data);
      labels = have.every((id, k) => {
        const best = logits(k);
        const tie = id >= 0 && want[k] >= 0 && Math.max(...best) - best[id] <= 2 * allowed(best);
        return id === want[k] || tie;
      });
    } else
      for (let k = 0; k < have.length / classes; k++) {
        const [mine, theirs] = [answers(have)(k), answers(want)(k)];
        const most = allowed(theirs);
        mine.forEach((x, c) => {
          const error = Math.abs(x - theirs[c]);
          maxError = Math.max(maxError, error);
          ok &&= error <= most; // a NaN fails too
        });
      }
  }
  return { maxError, labels, ok: ok && labels };
}

// ---- Small things ----

function natsOf(logits, id) {
  const highest = logits.reduce((most, x) => Math.max(most, x), -Infinity);
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

function decoded(bytes, where) {
  try {
    return utf8(bytes);
  } catch {
    return fail(where, "is not UTF-8; copy or export the bundle again");
  }
}

function utf8(bytes = new Uint8Array()) {
  return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
}

function isBytes(value) {
  return Object.prototype.toString.call(value) === "[object Uint8Array]";
}

function wrongTask(task, call) {
  return new TypeError(`this model is for ${task} and has no ${call}: call ${TASK_CALLS[task]}`);
}

function kindOf(value) {
  return value === null ? "null" : Array.isArray(value) ? "an array" : typeof value;
}

function show(value) {
  const shown = typeof value === "function" ? "a function" : (JSON.stringify(value) ?? String(value));
  return shown.length > 60 ? `${shown.slice(0, 60)}…` : shown;
}

function lineOf(error) {
  return String(error?.message ?? error).split("\n")[0].slice(0, 200);
}

function fail(where, what) {
  throw new Error(`${where}: ${what}`);
}

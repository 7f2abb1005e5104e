// What tests/embed/test_js.py asks of ohlol.mjs, in Node and in the browser alike: all of it in one go.
// `answers(load, work, at)`: `work` is what the test sends, `at(name)` where a bundle lies; what comes back is JSON.

const FORMS = ["NFC", "NFD", "NFKC", "NFKD"];

export async function answers(load, work, at) {
  const found = { unicode: newestScript() };
  for (const name of work.bundles) {
    const model = await load(at(name));
    found[name] = await ofBundle(model, work);
    await model.release();
  }
  found.generated = await generated(await load(at("lm-gru")), work);
  found.mapping = await mapping(load, work, at);
  found.refusals = await refusals(load, at);
  found.order = await order(load, at);
  found.runs = await runs(load, work, at);
  found.released = await released(load, at);
  found.sources = await sources(load, at);
  found.wrong = await (await load(at("broken/wrong"))).verify();
  found.long = await long(load, at);
  return found;
}

/** Texts of more than a call takes. */
async function long(load, at) {
  const text = "hello, new world. ".repeat(1200);
  const labels = (await (await load(at("tag-gru"))).tag(text)).labels.map(({ label }) => label);
  const { label } = await (await load(at("classify-lstm"))).classify(text);
  const { natsPerCharacter } = await (await load(at("lm-rnn"))).score(text);
  return { "tag-gru": labels, "classify-lstm": { label }, "lm-rnn": { natsPerCharacter } };
}

/** Which version of Unicode this host normalises by, as far as the strings of the test can tell. */
function newestScript() {
  return "\u{16d63}\u{16d67}".normalize("NFC").length === 2 ? 16 : 15;
}

/** Which texts with long runs of characters that join are taken, and that the answer is that of the host. */
async function runs(load, work, at) {
  const model = await load(at("tag-rnn")); // NFC
  const verdict = (text) => {
    try {
      return model.normalise(text) === text.normalize("NFC");
    } catch (error) {
      return error.message;
    }
  };
  return work.runs.map((parts) => verdict(parts.map(([character, times]) => character.repeat(times)).join("")));
}

/** A model that was released, twice, while a call ran and another opened stream.onnx: what they answer, and it says then. */
async function released(load, at) {
  const model = await load(at("tag-gru"));
  const calls = [model.tag("h"), model.tag("h".repeat(20_000)), model.release(), model.release()];
  const [short, long] = await Promise.allSettled(calls);
  const after = await model.tag("h").catch(({ message }) => message);
  const other = await (await load(at("tag-gru"))).tag("h"); // nothing is left waiting
  return { short: short.value?.labels.length, long: long.value?.labels.length, after, other: other.labels.length };
}

const CALLS = { tag: "tag", classify: "classify", lm: "score" };

/** An answer, as tests/embed/conftest.py has Python's; `spans` beside it. */
function plain(task, answer) {
  if (task === "tag") {
    const { text, labels, probabilities, words, sentences } = answer;
    const found = { text, labels: labels.map(({ label }) => label), probabilities: Array.from(probabilities) };
    if (words) Object.assign(found, { words: words.map((w) => w.text), sentences: sentences.map((s) => s.text) });
    return found;
  }
  if (task === "classify") {
    const probabilities = Object.fromEntries(
      answer.probabilities.map(({ label, probability }) => [label, probability]),
    );
    return { text: answer.text, label: answer.label, probabilities };
  }
  return { text: answer.text, next: answer.next, probability: answer.probability, nats: answer.natsPerCharacter };
}

async function ofBundle(model, { texts, chunkings }) {
  const call = (given) => model[CALLS[model.task]](given);
  const [alone, batch, spans, streamed] = [{}, {}, {}, {}];
  for (const [key, text] of Object.entries(texts)) {
    const answer = await call(text);
    alone[key] = plain(model.task, answer);
    if (model.task === "tag") {
      spans[key] = answer.labels.map(({ start, end, character, known }) => [start, end, character, known]);
      checkProbabilities(model, answer);
    }
  }
  const keys = Object.keys(texts);
  (await call(keys.map((key) => texts[key]))).forEach((answer, k) => (batch[keys[k]] = plain(model.task, answer)));
  const streams = model.maxLength === Infinity;
  for (const [name, [key, cuts]] of Object.entries(streams ? chunkings : {})) {
    const stream = await model.stream();
    const pieces = [];
    for (const [k, start] of cuts.entries()) pieces.push(await stream.feed(texts[key].slice(start, cuts[k + 1])));
    pieces.push(await stream.finish());
    streamed[name] = {
      pieces: pieces.map((answer) => plain(model.task, answer)),
      spans: pieces.flatMap(({ labels = [] }) => labels.map((l) => [l.start, l.end, l.character, l.known])),
    };
  }
  const { passed, rows } = await model.verify();
  const noStream = streams ? "" : await model.stream().catch(({ message }) => message);
  const { task, labels, maxLength } = model;
  return { task, labels, maxLength, alone, batch, spans, streamed, noStream, proof: { passed, rows } };
}

function checkProbabilities(model, { labels, probabilities }) {
  labels.forEach(({ label, probability }, t) => {
    const column = model.labels.indexOf(label);
    if (probabilities[t * model.labels.length + column] !== probability) throw new Error("not the label's probability");
  });
}

async function generated(model, { samplings, numbers }) {
  const found = {};
  for (const [name, { prompt, ...sampling }] of Object.entries(samplings)) {
    const left = [...numbers];
    let text = "";
    for await (const character of model.generate(prompt, { random: () => left.shift(), ...sampling }))
      text += character;
    found[name] = text;
  }
  const characters = [];
  for await (const character of model.generate("h", { temperature: 0, length: 50 })) {
    characters.push(character);
    if (characters.length === 3) break; // the app has enough
  }
  found.left = characters.length;
  return found;
}

/** Pieces that normalise apart are the whole, normalised: each character has its place, for every form. */
async function mapping(load, { seed, drawn }, at) {
  const odd = [];
  for (let point = 0; point <= 0x10ffff; point++) {
    const character = String.fromCodePoint(point);
    if (/[\p{M}\p{Cs}]/u.test(character) || FORMS.some((form) => character.normalize(form) !== character))
      odd.push(character);
  }
  const random = mulberry(seed);
  const pick = (list) => list[Math.floor(random() * list.length)];
  const few = [..."he 中한😀.\n\u0301\u0323\u1100\u1161\u11a8\ud800", "\udc00"];
  const texts = Array.from({ length: drawn }, () => {
    const size = Math.floor(random() * 12);
    return Array.from({ length: size }, () => pick(random() < 0.5 ? few : odd)).join("");
  });
  const wrong = [];
  let checked = 0;
  for (const name of ["tag-rnn", "tag-gru", "tag-lstm", "tag-rnn-both", "tag-gru-both"]) {
    const model = await load(at(name));
    const form = model.facts.alphabet.normalisation;
    const normal = (text) => (form === "none" ? text : text.normalize(form));
    // Every character that a form changes or that joins: alone, taken apart, and between letters and marks.
    for (const character of odd)
      for (const text of [
        character,
        character.normalize("NFKD"),
        `e${character}\u0301\u0323${character}`,
        `\u1100${character}\u11a8`,
      ])
        if (model.normalise(text) !== normal(text)) wrong.push([form, text]);
    const all = await model.tag(texts);
    all.forEach(({ text, labels }, k) => {
      const given = texts[k];
      let right = text === normal(given) && labels.map(({ character }) => character).join("") === text;
      for (let t = 0, end = 0; t < labels.length;) {
        // Those of one place: what stands there, normalised.
        const { start, end: stop } = labels[t];
        let after = t;
        while (after < labels.length && labels[after].start === start) after++;
        const characters = labels
          .slice(t, after)
          .map(({ character }) => character)
          .join("");
        right &&= start === end && stop > start && normal(given.slice(start, stop)) === characters;
        right &&= labels.slice(t, after).every((label) => label.end === stop);
        [t, end] = [after, stop];
        if (t === labels.length) right &&= end === given.length;
      }
      if (form === "none" || given === normal(given))
        right &&= labels.every(({ start, end, character }) => given.slice(start, end) === character);
      if (!right) wrong.push([form, given]);
      checked += 1;
    });
    await model.release();
  }
  return { wrong: wrong.slice(0, 5), checked, odd: odd.length };
}

function mulberry(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** What is refused: `[the error's class, its message]`. */
async function refusals(load, at) {
  const tagger = await load(at("tag-gru"));
  const both = await load(at("tag-rnn-both"));
  const classifier = await load(at("classify-lstm-both"));
  const lm = await load(at("lm-gru"));
  const ended = await tagger.stream();
  await ended.finish();
  const marks = "\u0301\u0323".repeat(2048);
  const cases = {
    "an empty array": () => tagger.tag([]),
    null: () => tagger.tag(null),
    nothing: () => tagger.tag(),
    "a number": () => tagger.tag(3),
    "a number in an array": () => tagger.tag(["h", 3]),
    "a hole in an array": () => tagger.tag(["h", , "h"]),
    "a String object": () => tagger.tag(new String("h")),
    "classify of a tagger": () => tagger.classify("h"),
    "score of a tagger": () => tagger.score("h"),
    "generate of a tagger": () => tagger.generate("h"),
    "tag of a classifier": () => classifier.tag("h"),
    "tag of a language model": () => lm.tag("h"),
    "a stream both ways": () => both.stream(),
    "a text too long": () => both.tag("h".repeat(65_537)),
    "a piece that is null": async () => (await tagger.stream()).feed(null),
    "a stream that has ended": () => ended.feed("h"),
    "an end that has ended": () => ended.finish(),
    "too many marks": () => tagger.tag(`e${marks}`),
    "too many marks in pieces": async () => (await tagger.stream()).feed(`e${marks}`),
    "a prompt that is a number": () => lm.generate(3),
    "no sampling": () => lm.generate("h", null),
    "a length of a half": () => lm.generate("h", { length: 0.5 }),
    "a negative temperature": () => lm.generate("h", { temperature: -1 }),
    "a temperature that is none": () => lm.generate("h", { temperature: NaN }),
    "topK 0": () => lm.generate("h", { topK: 0 }),
    "topP 0": () => lm.generate("h", { topP: 0 }),
    "an empty stop": () => lm.generate("h", { stop: ["a", ""] }),
    "a random that is a number": () => lm.generate("h", { random: 0.5 }),
    "a random of one": () => lm.generate("h", { random: () => 1 }).next(),
    "a random of nothing": () => lm.generate("h", { random: () => undefined }).next(),
    "no source": () => load(),
    "an empty source": () => load(""),
    "a source that is a number": () => load(3),
    "a source that is an array": () => load([]),
    "no files": () => load({}),
    "options that are null": () => load(at("tag-gru"), null),
    "an ort that is null": () => load(at("tag-gru"), { ort: null }),
    "an option of no name": () => load(at("tag-gru"), { Ort: {} }),
    "a sampling of no name": () => lm.generate("h", { top_k: 3 }),
    "a sampling like none": () => lm.generate("h", { seed: 3 }),
    "logits that are none": async () => (await load(at("broken/nan"))).tag("h"),
    "logits that are none, made": async () => (await load(at("broken/lm-nan"))).generate("h").next(),
    "labels that are none": async () => (await load(at("broken/label"))).tag("h"),
    "a web page": () => load("data:text/html,%20<!doctype html>"),
    "an ort that is none": () => load(at("tag-gru"), { ort: {} }),
    "a folder that is not there": () => load(at("nowhere")),
    "a file that is not there": () => load(`${at("nowhere")}/model.onnx`),
    "a stream file": () => load(`${at("tag-gru")}/stream.onnx`),
    "bytes of nothing": () => load(new Uint8Array()),
    "bytes of text": () => load(new TextEncoder().encode("<!doctype html>")),
  };
  for (const name of [
    "future",
    "format",
    "cut",
    "flipped",
    "swapped",
    "foreign",
    "twice",
    "lone",
    "outside",
    "hidden",
    "facts",
    "leaves",
  ])
    cases[name] = () => load(at(`broken/${name}`));
  for (const name of ["future", "flipped", "foreign", "cut", "outside"])
    cases[`${name}, a single file`] = () => load(`${at(`broken/${name}`)}/model.onnx`);
  if (globalThis.process) {
    for (const name of ["link", "pipe", "run"]) cases[name] = () => load(at(`broken/${name}`)); // on disk
    cases["another file"] = () => load(`${at("tag-gru")}/README.md`);
    cases["a way from here"] = () => load("nowhere/hello");
    cases["an old Node"] = () => without("getBuiltinModule", process, () => load(at("tag-gru")));
  } else cases["a web page for a bundle"] = () => load("/any/hello");
  const found = {};
  for (const [name, call] of Object.entries(cases)) {
    try {
      await call();
      found[name] = ["nothing", ""];
    } catch (error) {
      found[name] = [error.constructor.name, error.message];
    }
  }
  const fine = `e${marks.slice(1)}`; // as many as may be
  found.most = [
    (await tagger.tag(fine)).text === fine.normalize("NFD"),
    (await tagger.tag("h".repeat(20_000))).labels.length,
  ];
  found.longest = (await both.tag("h".repeat(65_536))).labels.length;
  return found;
}

/** Calls of a stream that overlap, and one that fails. */
async function order(load, at) {
  const model = await load(at("tag-gru"));
  const labels = (answer) => answer.labels.map(({ label }) => label);
  const whole = labels(await model.tag("hello world, hello"));
  const overlapping = await model.stream();
  const parts = ["hel", "lo wor", "", "ld, hello"].map((piece) => overlapping.feed(piece));
  const together = (await Promise.all([...parts, overlapping.finish()])).flatMap(labels);
  const failing = await model.stream();
  const first = labels(await failing.feed("hello "));
  const outcomes = await Promise.allSettled([
    failing.feed("e" + "\u0301".repeat(5000)),
    failing.feed("lost"),
    failing.finish(),
  ]);
  const rest = [...labels(await failing.feed("world, hello")), ...labels(await failing.finish())];
  // Streams, batches and models side by side; the runtime takes one call at a time.
  const other = await load(at("lm-lstm"));
  const side = await Promise.all([
    model.tag("hello"),
    other.score("hello"),
    model.tag(["hello", "h"]),
    other.score("hello"),
    (await model.stream()).feed("hello"),
  ]);
  return {
    whole,
    together,
    failed: outcomes.map(({ reason }) => reason?.constructor.name ?? "none"),
    rest: [...first, ...rest],
    side: labels(side[0]).join() === labels(side[2][0]).join() && side[1].natsPerCharacter === side[3].natsPerCharacter,
  };
}

/** The same bundle by every way of `load`. */
async function sources(load, at) {
  const answer = async (source) => (await (await load(source)).tag("hello")).labels.map(({ label }) => label).join("|");
  const url = new URL(`${at("tag-gru")}/`, globalThis.location?.href ?? "file:///");
  const files = {};
  const { read } = globalThis.reading; // of the host
  for (const name of ["manifest.json", "model.onnx", "stream.onnx"])
    files[name] = await read(`${at("tag-gru")}/${name}`);
  const whole = await load(files);
  const streamed = await (await whole.stream()).feed("hello ");
  return {
    folder: await answer(at("tag-gru")),
    slash: await answer(`${at("tag-gru")}/`),
    url: await answer(url),
    file: await answer(`${at("tag-gru")}/model.onnx`),
    bytes: await answer(files["model.onnx"]),
    buffer: await answer(Uint8Array.from(files["model.onnx"]).buffer),
    inside: await answer(Uint8Array.from([1, 2, ...files["model.onnx"], 3]).subarray(2, -1)),
    files: await answer(files),
    data: await answer(`data:application/octet-stream;base64,${btoa(String.fromCharCode(...files["model.onnx"]))}`),
    unchecked: await without("crypto", globalThis, () => answer(at("tag-gru"))), // a page that came by plain http
    stream: streamed.labels.length,
  };
}

/** What `call` gives where `owner` has no `name`. */
async function without(name, owner, call) {
  const kept = Object.getOwnPropertyDescriptor(owner, name);
  Object.defineProperty(owner, name, { value: undefined, configurable: true });
  try {
    return await call();
  } finally {
    Object.defineProperty(owner, name, kept);
  }
}

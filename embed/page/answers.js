// What a task's answer looks like: labels on characters, words, bars, surprise.
"use strict";

const MOST_BARS = 8;
const MOST_ABOUT = 5;
const MEANS = { B: "a word begins", I: "inside a word", O: "outside of words", S: "a sentence begins" };  // of the scheme "words"

// What the strip shows of each character of an answer.
function entriesOf(found) {
  const entry = { tag: tagged, classify: plain, lm: surprised }[MODEL.task];
  return found.characters.slice(0, MOST).map((character, k) => {
    const { below, says, className, share, about } = entry(found, k);
    const unknown = found.known[k] ? "" : ", unknown to the model";
    return {
      character, below, share,
      name: spoken(character) + says + unknown,
      className: "c " + className + (unknown && " unknown"),
      about: () => [make("p", `${shown(character)} ${code(character)}${unknown}`), ...about()],
    };
  });
}

function tagged(found, k) {
  const { label, probability } = found.labels[k];
  const id = MODEL.labels.indexOf(label);
  const about = () => {
    const row = found.probabilities.subarray(k * MODEL.labels.length, (k + 1) * MODEL.labels.length);
    const all = Array.from(row, (share, id) => ({ label: MODEL.labels[id], probability: share }));
    return [listed(all.sort((a, b) => b.probability - a.probability).slice(0, MOST_ABOUT), labelShown)];
  };
  return {
    below: labelShown(label), says: `, label ${labelSpoken(label)}, ${percent(probability)}`, about,
    className: colour(id) + (probability < UNSURE ? " unsure" : ""),
  };
}

const GREY = 7;
const colour = id => `k${MODEL.words && MODEL.labels[id] === "O" ? GREY : id % 8} e${Math.floor(id / 8) % 4}`;

function plain() {
  return { says: "", className: "", about: () => [] };
}

function surprised(found, k) {
  const bits = found.bits[k], first = Number.isNaN(bits);
  const about = () => first ? [make("p", "Nothing stands before it.")]
    : [make("p", `${bits.toFixed(2)} bits: ${percent(2 ** -bits)} sure of it. Expected here:`), listed(found.expected[k], nextShown)];
  return {
    below: first ? "" : bitsShown(bits), says: first ? ", the first" : `, ${bitsShown(bits)} bits`, className: "", about,
    share: first ? "0%" : `${(50 * Math.min(1, bits / SURPRISING)).toFixed(0)}%`,
  };
}

function listed(entries, name) {
  const list = make("ol", "", "bars");
  bars(list, entries, name);
  return list;
}

// The parts of the answer's card beside the strip.
function drawAnswer(found) {
  if (MODEL.task === "classify") {
    const rest = found.probabilities.slice(MOST_BARS);
    bars(at("bars"), found.probabilities.slice(0, MOST_BARS), labelShown);
    const share = rest.reduce((sum, { probability }) => sum + probability, 0);
    at("more").hidden = !rest.length;
    at("more").textContent = `${counted(rest.length, "other label", "other labels")}: ${percent(share)} together`;
  }
  if (MODEL.task === "lm") {
    const nats = found.natsPerCharacter;
    at("bits").textContent = nats === null ? "" : `${(nats / Math.LN2).toFixed(3)} bits per character`;
    at("bits").hidden = nats === null;
    bars(at("candidates"), found.expected?.at(-1) ?? [], nextShown);
  }
  if (MODEL.words) {
    at("words-title").textContent = `Words: ${found.words.length.toLocaleString("en")}`;
    at("sentences-title").textContent = `Sentences: ${found.sentences.length.toLocaleString("en")}`;
    at("word-list").replaceChildren(...found.words.map(({ text }) => make("li", text)));
    at("sentence-list").replaceChildren(...found.sentences.map(({ text }) => make("li", text)));
  }
}

const legendOf = label => MODEL.words ? `${label}: ${MEANS[label]}` : "label " + labelShown(label);

// Whether there is a text, and all that stands in it is strange to the model; spaces are no knowledge.
function knowsNone(found) {
  const seen = found.known.filter((_, k) => found.characters[k].trim());
  return seen.length > 0 && !seen.includes(true);
}

// The legend: only what is there to be seen.
function drawLegend(found, entries) {
  const items = [];
  const item = (sample, text) => { const line = make("li"); line.append(sample, make("span", text)); items.push(line); };
  if (MODEL.task === "tag") {
    const used = new Set(found.labels.slice(0, MOST).map(({ label }) => label));
    MODEL.labels.forEach((label, id) => { if (used.has(label)) item(make("span", "", "c " + colour(id)), legendOf(label)); });
    if (entries.some(({ className }) => className.includes("unsure"))) item(make("span", "", "c unsure"), `less than ${100 * UNSURE} % sure`);
  }
  if (MODEL.task === "lm" && entries.length > 1) item(make("span", "", "ramp"), `0 to ${SURPRISING} bits: how little it was expected`);
  const count = found.known.filter(known => !known).length;
  if (count) {
    const sample = make("span", "", "c unknown");
    sample.append(make("b", "x"));
    item(sample, `unknown to the model: ${counted(count, "character", "characters")}`);
  }
  at("legend").replaceChildren(...items);
  at("legend").hidden = !items.length;
}

// What a screen reader is told when the typing rests.
function summary(found) {
  const T = found.characters.length;
  if (!T) return "No text.";
  const unknown = found.known.filter(known => !known).length;
  const parts = [counted(T, "character", "characters")];
  if (MODEL.words) parts.push(counted(found.words.length, "word", "words"), counted(found.sentences.length, "sentence", "sentences"));
  else if (MODEL.task === "tag") parts.push("labels " + found.labels.slice(0, 60).map(({ label }) => labelSpoken(label)).join(" "));
  if (MODEL.task === "classify") parts.push(`${labelSpoken(found.label)}, ${percent(found.probability)}`);
  if (MODEL.task === "lm") {
    if (found.natsPerCharacter !== null) parts.push(at("bits").textContent);
    parts.push(`next: ${found.next === null ? "unknown" : spoken(found.next)}, ${percent(found.probability)}`);
  }
  if (knowsNone(found)) parts.push("the model knows none of these characters");
  else if (unknown) parts.push(`${unknown} unknown to the model`);
  return parts.join("; ") + ".";
}

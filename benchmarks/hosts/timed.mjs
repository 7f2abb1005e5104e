/** The answer of a model as one string, as Python's `str` has it. */
export async function answer(model, text) {
  if (model.task === "classify") return (await model.classify(text)).label;
  return (await model.tag(text)).labels.map(({ label }) => label).join("");
}

/** The median seconds of `count` answers, after 200 that are not counted. Where the clock is coarse, of 50 at a time. */
export async function steady(model, text, count) {
  const times = [];
  for (let k = 0; k < 200; k++) await answer(model, text);
  for (let k = 0; k < count; k += 50) {
    const begun = performance.now();
    for (let j = 0; j < 50; j++) await answer(model, text);
    times.push((performance.now() - begun) / 50_000);
  }
  return times.sort((a, b) => a - b)[times.length >> 1];
}

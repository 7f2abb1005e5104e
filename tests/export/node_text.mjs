// node node_text.mjs FOLDER: answers batches of texts by text.onnx files, with the onnxruntime-node in FOLDER.
// In, as JSON on stdin: {"models": {NAME: PATH}, "batches": {NAME: [TEXT, ...]}}.
// Out, as JSON: {MODEL: {BATCH: {OUTPUT: {"dims", "data"}}}}.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const ort = createRequire(join(process.argv[2], "package.json"))("onnxruntime-node");
const { models, batches } = JSON.parse(readFileSync(0, "utf8"));
const found = {};
for (const [model, path] of Object.entries(models)) {
  const session = await ort.InferenceSession.create(path);
  found[model] = {};
  for (const [batch, texts] of Object.entries(batches)) {
    const answers = await session.run({ text: new ort.Tensor("string", texts, [texts.length]) });
    const entries = Object.entries(answers).map(([name, { dims, data }]) => [name, { dims, data: Array.from(data) }]);
    found[model][batch] = Object.fromEntries(entries);
  }
}
process.stdout.write(JSON.stringify(found));

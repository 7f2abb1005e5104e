// node host.mjs OHLOL.MJS NODE_MODULES MODEL TEXT COUNT: the answer, then the median seconds of COUNT more, as lines of JSON.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [module, folder, path, text, count] = process.argv.slice(2);
const ort = createRequire(`${folder}/`)("onnxruntime-node");
const { load } = await import(pathToFileURL(module));
const { answer, steady } = await import("./timed.mjs");
const model = await load(path, { ort });
process.stdout.write(`${JSON.stringify(await answer(model, text))}\n`);
process.stdout.write(`${await steady(model, text, Number(count))}\n`);

// node example.mjs PHOTO [PROMPT...]: one line per prompt with its share of the picture. --bundle FOLDER, --json, --backend NAME.
// Needs, in this folder: npm install

import { parseArgs } from "node:util";
import { fileURLToPath } from "node:url";
import sharp from "sharp";
import { Engine } from "digseg";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { bundle: { type: "string" }, backend: { type: "string", default: "auto" }, json: { type: "boolean" } },
});
const [photo, ...prompts] = positionals;
if (!photo) {
  console.error("usage: node example.mjs PHOTO [PROMPT...] [--bundle FOLDER] [--backend cpu|wasm] [--json]");
  process.exit(2);
}

// Turned as its metadata say, colours as they are stored: as Python reads it.
async function read(path) {
  const { data, info } = await sharp(path, { ignoreIcc: true }).autoOrient().toColourspace("srgb").raw().toBuffer({ resolveWithObject: true });
  return { data, width: info.width, height: info.height, path };
}

const bundle = values.bundle ?? fileURLToPath(new URL("../../digseg_engine/assets/digseg-tiny-fp16", import.meta.url));
try {
  const engine = await Engine.load(bundle, { backend: values.backend });
  const asked = prompts.length ? prompts : engine.vocabulary.length ? engine.vocabulary : ["road", "building", "water"];
  const result = await engine.segment(await read(photo), asked);
  if (values.json) console.log(JSON.stringify(result.record()));
  else for (const [k, prompt] of result.prompts.entries()) console.log(`${prompt}: ${result.there[k] ? `${(100 * result.areas[k]).toFixed(2)} %` : "not there"}`);
  await engine.close();
} catch (error) {
  console.error(`example: ${String(error.message).split("\n")[0]}`);
  process.exit(error.name === "InputError" || error.name === "UsageError" ? 2 : 1);
}

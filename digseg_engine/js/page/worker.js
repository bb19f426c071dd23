// The worker of the page without a server: opens the model that `site.json` names and answers one message after the other. The records
// are those of the server (docs/serve.md).

import { Engine, InputError, UsageError, fromAddress, pictureOf, probeWebGpu } from "./digseg/digseg.js";

const KEPT = 64; // encodings; the least recently asked goes first, and its picture is encoded again when it is asked about
const MIB = 2 ** 20;
const runtimes = [
  { name: "webgpu", load: () => import("./ort/ort.webgpu.min.mjs"), probe: probeWebGpu },
  { name: "wasm", load: () => import("./ort/ort.wasm.min.mjs") },
];
const encodings = new Map();
const told = (progress) => postMessage({ progress });
let number = 0;

const opened = (async () => {
  const site = await (await fetch("site.json")).json(), [model] = site.models;
  let read = 0;
  const source = fromAddress(`models/${model.name}`, (file, bytes) => {
    read += bytes;
    told(read < model.bytes ? `Loading the model, ${(read / MIB).toFixed(0)} of ${(model.bytes / MIB).toFixed(0)} MB` : "Starting the model");
  });
  return { site, engine: await Engine.load(source, { runtimes, backend: new URLSearchParams(location.search).get("backend") ?? "auto" }) };
})();
opened.catch(() => {}); // said to everybody who asks

const does = {
  async models() {
    const { site, engine } = await opened;
    const model = { ...engine.model, backend: engine.backend, working_size: engine.imageSize, vocabulary: engine.vocabulary.length ? engine.vocabulary : null, tried: engine.tried };
    return { version: site.version, models: [model], limits: { prompts: site.prompts }, palette: site.palette };
  },

  async encode(file, name) {
    const { engine } = await opened, began = performance.now(), picture = await pictureOf(file, name), decode = (performance.now() - began) / 1000;
    const encoding = await engine.encode(picture), id = String(number++), { width, height, size, notes } = encoding;
    encodings.set(id, { encoding, file, name });
    for (const [oldest, { encoding: old }] of encodings) {
      if (encodings.size <= KEPT) break;
      old.dispose();
      encodings.delete(oldest);
    }
    return { id, model: engine.model.name, picture: name, width, height, working_size: size, seconds: { decode, ...encoding.seconds }, notes };
  },

  async segment(id, prompts) {
    const { engine } = await opened, result = await engine.segment(kept(id).encoding, prompts ?? null);
    return { ...result.record({ rle: true }), output: "rle" };
  },

  // The picture as the model saw it, as PNG.
  async picture(id) {
    const { file, name } = kept(id), { data, width, height } = await pictureOf(file, name), canvas = new OffscreenCanvas(width, height);
    canvas.getContext("2d").putImageData(new ImageData(data, width, height), 0, 0);
    return canvas.convertToBlob({ type: "image/png" });
  },

  async forget(id) {
    encodings.get(id)?.encoding.dispose();
    encodings.delete(id);
  },
};

function kept(id) {
  const found = encodings.get(id);
  if (!found) throw Object.assign(new Error("the picture was let go of; encode it again"), { code: "unknown_encoding", status: 404 });
  encodings.delete(id);
  encodings.set(id, found);
  return found;
}

addEventListener("message", async ({ data: { id, what, given } }) => {
  try {
    postMessage({ id, value: await does[what](...given) });
  } catch (error) {
    const wrong = error instanceof InputError || error instanceof UsageError;
    postMessage({ id, error: { message: error.message, code: error.code ?? (wrong ? "cannot_be_used" : "failed"), status: error.status ?? (wrong ? 422 : 500) } });
  }
});

// A bundle's graphs as sessions of ONNX Runtime, and whether they answer the golden sample as they should.
//
// The CPU (native in Node, WebAssembly in both) runs the graphs made for it (`*.fp32.onnx`) over the same stored weights; WebGPU
// runs the graphs as stored where its adapter computes in their precision, else those of the CPU. What answers the golden sample wrongly is not used: WebGPU has been seen to return masks of IoU 0.006
// without an error.

import { safetensors } from "./bundle.js";
import { BackendError, BundleError, DigsegError, inOneLine } from "./errors.js";

const LIMITS = { relative: 1e-3, iou: 0.999 }; // at least so much room has every backend, as in Python
export const GRAPHS = ["text_encoder", "image_encoder", "presence", "mask_decoder", "labels"];

// The adapter of WebGPU; nothing where there is none.
export const adapterOf = async () => await globalThis.navigator?.gpu?.requestAdapter() ?? null;

// One runtime that may run here: {name, load() -> Promise<module of ONNX Runtime>, probe?(bundle, named) -> Promise<reason why not, or "">}.
// The sessions of one bundle by one runtime.
export class Backend {
  static async open(bundle, { name, load }, threads) {
    const backend = new Backend();
    try {
      backend.ort = await load();
    } catch (error) {
      throw new BackendError(`backend ${name} cannot run here: ${inOneLine(error)}; install the runtime it needs (docs/web.md)`);
    }
    const { ort } = backend, { wasm } = ort.env;
    if (name !== "cpu") wasm.numThreads = threads ?? (globalThis.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1);
    const precision = bundle.manifest.precision.name, halves = precision === "fp16" && name === "webgpu" && (await adapterOf())?.features.has("shader-f16");
    Object.assign(backend, { name, wide: !halves, sessions: {} });
    for (const graph of GRAPHS) {
      if (bundle.files.has(`${graph}.onnx`)) backend.sessions[graph] = await backend.#session(bundle, graph, threads);
    }
    const widened = bundle.files.has("image_encoder.fp32.onnx") && backend.wide;
    const { versions } = ort.env, which = name === "cpu" ? `onnxruntime-node ${versions.node ?? versions.common}` : `onnxruntime-web ${versions.web ?? versions.common}`;
    const width = name === "wasm" ? `, ${wasm.numThreads} thread${wasm.numThreads === 1 ? "" : "s"}` : "";
    backend.detail = `${which}, ${name}${width}, ${widened ? `${precision} weights widened to fp32` : precision}`;
    return backend;
  }

  async #session(bundle, graph, threads) {
    const { ort, name, wide } = this, file = wide && bundle.files.has(`${graph}.fp32.onnx`) ? `${graph}.fp32.onnx` : `${graph}.onnx`;
    const body = bundle.graph(file), weights = bundle.weights(file);
    const options = {
      executionProviders: [name === "webgpu" ? { name, preferredLayout: "NCHW" } : name], enableMemPattern: false, logSeverityLevel: 3,
      ...(weights ? { externalData: [weights] } : {}), ...(name === "cpu" && threads ? { intraOpNumThreads: threads } : {}),
    };
    try {
      return await ort.InferenceSession.create(body, options);
    } catch (error) {
      throw new BackendError(`${this.name} cannot load ${file}: ${inOneLine(error)}; export the bundle again, or update ONNX Runtime`);
    }
  }

  has(graph) { return graph in this.sessions; }

  // The element type that a graph takes an input in.
  typeOf(graph, input) {
    const session = this.sessions[graph];
    return session.inputMetadata.find((each) => each.name === input)?.type ?? "float32";
  }

  tensor(type, data, dims) { return new this.ort.Tensor(type, data, dims); }

  // The outputs of a graph by name. Throws BackendError whatever went wrong.
  async run(graph, feeds, wanted) {
    try {
      return await this.sessions[graph].run(feeds, ...(wanted ? [wanted] : []));
    } catch (error) {
      const shapes = Object.entries(feeds).map(([name, tensor]) => `${name} ${tensor.dims.join("x")}`).join(", ");
      throw new BackendError(`backend ${this.name} failed on ${shapes}: ${inOneLine(error)}; work at a smaller size, or on another backend`);
    }
  }

  async close() {
    const { sessions } = this;
    this.sessions = {};
    for (const session of Object.values(sessions)) await session.release?.();
  }
}

// {error, iou, right, reason, cell} of a backend on the bundle's golden sample, every prompt decoded; error: the larger one of logits
// and presence, relative (L2); cell: pixels of one logit along a side.
export async function checkGolden(backend, bundle) {
  const needed = bundle.vocabulary ? ["image", "label_map"] : ["image", "token_ids", "token_mask", "logits"];
  const golden = safetensors(bundle.file("golden.safetensors"), `${bundle.name}/golden.safetensors`, needed), { limits } = bundle.manifest.verification;
  checkSizes(golden, bundle);
  let found;
  try {
    found = bundle.vocabulary ? await folded(backend, golden) : await open(backend, golden);
  } catch (error) {
    if (!(error instanceof DigsegError)) throw error;
    return { error: Infinity, iou: 0, right: false, reason: error.message };
  }
  const relative = Math.max(limits.relative, LIMITS.relative), least = bundle.vocabulary ? limits.labels : Math.min(limits.iou, LIMITS.iou);
  const what = bundle.vocabulary ? "share of the label map" : "mask IoU";
  const reason = !Number.isFinite(found.error) ? "wrong: its logits or presence are not finite, or of another shape than the golden sample's"
    : found.error > relative ? `wrong: error ${found.error.toExponential(2)} on the golden sample, at most ${relative} allowed`
      : !(found.iou >= least) ? `wrong: ${what} ${found.iou.toFixed(4)} on the golden sample, at least ${least} expected` : "";
  return { ...found, right: !reason, reason, cell: golden.logits ? golden.image.dims[2] / golden.logits.dims[2] : 1 };
}

function checkSizes(golden, { profile, vocabulary, name }) {
  const [B, , H, W] = golden.image.dims, [K, L] = vocabulary ? [] : golden.token_ids.dims, sizes = { B, H, W, ...(vocabulary ? {} : { K, L }) };
  if (profile && Object.entries(sizes).some(([axis, size]) => !(size >= profile[axis].min && size <= profile[axis].max))) {
    throw new BundleError(`${name}/golden.safetensors does not fit the shapes in the manifest: ${JSON.stringify(sizes)}; export the bundle again`);
  }
}

async function open(backend, golden) {
  const given = (name) => backend.tensor(golden[name].type, golden[name].data, golden[name].dims), mask = given("token_mask");
  const { encoding } = await backend.run("image_encoder", { image: given("image") });
  const text = await backend.run("text_encoder", { token_ids: given("token_ids"), token_mask: mask });
  const feeds = { encoding, text_keys: text.text_keys, text_values: text.text_values, token_mask: mask };
  const { logits } = await backend.run("mask_decoder", feeds), pairs = [[logits, golden.logits, 1e-12]];
  if (backend.has("presence") !== "presence" in golden) return { error: Infinity, iou: 0 };
  if (golden.presence) pairs.push([(await backend.run("presence", feeds)).presence, golden.presence, 1]);
  encoding.dispose();
  return { error: worst(pairs), iou: meanIou(logits.data, golden.logits) };
}

async function folded(backend, golden) {
  const { encoding } = await backend.run("image_encoder", { image: backend.tensor(golden.image.type, golden.image.data, golden.image.dims) });
  const found = await backend.run("labels", { encoding }), pairs = [];
  for (const [name, least] of [["logits", 1e-12], ["presence", 1]]) {
    if ((name in golden) !== (name in found)) return { error: Infinity, iou: 0 };
    if (name in golden) pairs.push([firstNames(found[name], golden[name].dims[1]), golden[name], least]);
  }
  const { label_map: map } = found, wanted = golden.label_map.data;
  if (map?.data.length !== wanted.length) return { error: Infinity, iou: 0 };
  let same = 0;
  wanted.forEach((label, i) => { same += Number(Number(map.data[i]) === label); });
  return { error: worst(pairs), iou: same / wanted.length };
}

// The first `count` entries of axis 1.
function firstNames({ data, dims: [pictures, names, ...rest] }, count) {
  const size = rest.reduce((product, side) => product * side, 1), out = new Float32Array(pictures * count * size);
  for (let i = 0; i < pictures; i++) out.set(data.subarray(i * names * size, (i * names + count) * size), i * count * size);
  return { data: out, dims: [pictures, count, ...rest] };
}

function worst(pairs) {
  return Math.max(0, ...pairs.map(([{ data, dims }, wanted, least]) => {
    if (dims.join() !== wanted.dims.join()) return Infinity;
    let apart = 0, size = 0;
    wanted.data.forEach((value, i) => { apart += (data[i] - value) ** 2; size += value ** 2; });
    const error = Math.sqrt(apart) / Math.max(Math.sqrt(size), least);
    return Number.isNaN(error) ? Infinity : error;
  }));
}

// Mean over the masks where one of the two holds something; 1 where there is none.
function meanIou(data, { data: wanted, dims: [pictures, prompts, height, width] }) {
  const found = [], size = height * width;
  for (let k = 0; k < pictures * prompts; k++) {
    let both = 0, either = 0;
    for (let i = k * size; i < (k + 1) * size; i++) {
      both += Number(data[i] > 0 && wanted[i] > 0);
      either += Number(data[i] > 0 || wanted[i] > 0);
    }
    if (either) found.push(both / either);
  }
  return found.length ? found.reduce((sum, iou) => sum + iou, 0) / found.length : 1;
}

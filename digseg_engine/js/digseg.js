// DiGSeg in a browser: text-prompted segmentation of a bundle by `onnxruntime-web`. Types and remarks: digseg.d.ts.

import { Engine, Encoding, setDefaults } from "./engine.js";
import { fromAddress } from "./bundle.js";
import { adapterOf } from "./sessions.js";

export { Engine, Encoding };
export { Result, VERSION } from "./result.js";
export { BackendError, BundleError, DigsegError, InputError, UsageError } from "./errors.js";
export { fromAddress } from "./bundle.js";
export { pictureOf } from "./browser.js";
export * as rle from "./rle.js";

// Why WebGPU cannot run a bundle here; "" where it can. Without half precision (shader-f16) it runs the graphs in float32. named: it was
// asked for by name; else an adapter that is software, slower than WebAssembly by far, is none.
export async function probeWebGpu({ files, manifest: { precision } }, named = false) {
  if (precision.name !== "fp32" && !files.has("image_encoder.fp32.onnx")) return `WebGPU runs fp32, fp16 and bf16 bundles, this one is ${precision.name}`;
  const adapter = await adapterOf();
  if (!adapter) return "this browser has no WebGPU, or no adapter for it";
  const software = adapter.info?.isFallbackAdapter || adapter.isFallbackAdapter || adapter.info?.architecture === "swiftshader";
  return software && !named ? "the adapter of WebGPU is software, slower than WebAssembly; ask for webgpu by name to use it" : "";
}

export const runtimes = [
  { name: "webgpu", load: () => import("onnxruntime-web/webgpu"), probe: probeWebGpu },
  { name: "wasm", load: () => import("onnxruntime-web/wasm") },
];
setDefaults({ runtimes, source: fromAddress });

// DiGSeg in a browser: text-prompted segmentation of a bundle by `onnxruntime-web`. Types and remarks: digseg.d.ts.

import { Engine, Encoding, setDefaults } from "./engine.js";
import { fromAddress } from "./bundle.js";

export { Engine, Encoding };
export { Result, VERSION } from "./result.js";
export { BackendError, BundleError, DigsegError, InputError, UsageError } from "./errors.js";
export { fromAddress } from "./bundle.js";
export { pictureOf } from "./browser.js";
export * as rle from "./rle.js";

// WebGPU runs graphs in the precision they are stored in.
export async function probeWebGpu({ manifest }) {
  const { name } = manifest.precision;
  if (name !== "fp16" && name !== "fp32") return `WebGPU runs fp32 and fp16 bundles, this one is ${name}`;
  const adapter = await globalThis.navigator?.gpu?.requestAdapter();
  if (!adapter) return "this browser has no WebGPU, or no adapter for it";
  return name === "fp16" && !adapter.features.has("shader-f16") ? "this adapter of WebGPU has no half precision (shader-f16)" : "";
}

export const runtimes = [
  { name: "webgpu", load: () => import("onnxruntime-web/webgpu"), probe: probeWebGpu },
  { name: "wasm", load: () => import("onnxruntime-web/wasm") },
];
setDefaults({ runtimes, source: fromAddress });

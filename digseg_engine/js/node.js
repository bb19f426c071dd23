// DiGSeg in Node: the same engine over `onnxruntime-node`, or over `onnxruntime-web` where that alone is installed.

import { readFile, readdir } from "node:fs/promises";
import { basename, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { fromAddress } from "./bundle.js";
import { setDefaults } from "./engine.js";
import { BundleError } from "./errors.js";

export { Engine, Encoding } from "./engine.js";
export { Result, VERSION } from "./result.js";
export { BackendError, BundleError, DigsegError, InputError, UsageError } from "./errors.js";
export { fromAddress } from "./bundle.js";
export * as rle from "./rle.js";

// A bundle in a folder: a path, or a file: address.
export function fromFolder(folder) {
  const path = resolve(String(folder).startsWith("file:") ? fileURLToPath(folder) : String(folder));
  const failing = (error, file) => {
    const missing = error.code === "ENOENT" || error.code === "ENOTDIR";
    if (missing && file === "manifest.json") return new BundleError(`${folder} is not a complete bundle: manifest.json is missing; expected a folder written by \`digseg-export\``);
    return new BundleError(`${join(path, file)} ${missing ? "is missing; copy the whole bundle again" : `cannot be read: ${error.code ?? error.message}; make it readable`}`);
  };
  return {
    name: String(folder),
    folder: basename(path),
    read: async (file) => { try { return new Uint8Array(await readFile(join(path, file))); } catch (error) { throw failing(error, file); } },
    list: () => readdir(path),
  };
}

export const runtimes = [
  { name: "cpu", load: () => import("onnxruntime-node") },
  { name: "wasm", load: () => import("onnxruntime-web/wasm") },
];
const isAddress = (bundle) => /^https?:/.test(String(bundle));
setDefaults({ runtimes, source: (bundle, told) => (isAddress(bundle) ? fromAddress(bundle, told) : fromFolder(bundle)) });

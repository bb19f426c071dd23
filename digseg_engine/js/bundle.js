// Opens a bundle (docs/bundle.md): accepts only what is complete, of a known version, and has every listed hash.
//
// A source is where its files come from: {name, read(file) -> Promise<Uint8Array>, list?() -> Promise<file names>}.

import { BundleError, InputError, inOneLine, quoted } from "./errors.js";
import { checkWeights } from "./graph_files.js";

export const FORMAT = "digseg.bundle/2", CONTRACT = 2;
const ONE_PIECE = "digseg.bundle/1", HOW_TO_EXPORT = "export it again with `digseg-export`";
const PLANS = [".plan", ".engine", ".trt"], NAME = /^[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}$/, AXES = ["B", "K", "L", "H", "W"];
const isCount = (value) => Number.isInteger(value) && value > 0 && value <= 2 ** 20;
const isLimit = (value) => typeof value === "number" && value >= 0;
const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
const isSpan = (value) => isObject(value) && [value.min, value.opt, value.max].every(isCount) && value.min <= value.opt && value.opt <= value.max;
const areShapes = (value) => isObject(value) && (AXES.every((axis) => value[axis] === "dynamic") || AXES.every((axis) => isSpan(value[axis])));
const isPresence = (value) => value == null || (isObject(value) && (value.threshold == null || typeof value.threshold === "number"));
const isText = (value) => typeof value === "string" && value.trim() !== "";
const areNames = (value) => Array.isArray(value) && value.length > 0 && value.every(isText) && new Set(value).size === value.length;
const isVocabulary = (value) => value == null || (isObject(value) && areNames(value.names) && value.rule === "strongest" && typeof value.labels_only === "boolean");

const NEEDED = [ // what this module takes from a manifest without asking again
  ["contract.version", Number.isInteger, "a whole number"],
  ["files", isObject, "an object"],
  ["model.image_size", isCount, "a number of pixels"],
  ["model.image_size_max", (value) => value == null || isCount(value), "nothing, or a number of pixels"],
  ["model.stride", isCount, "a number of pixels"],
  ["precision.name", (value) => typeof value === "string", "a text"],
  ["presence", isPresence, "nothing, or a threshold that is a number or null"],
  ["shapes", areShapes, '"dynamic" or min <= opt <= max for each of B, K, L, H, W'],
  ["verification.limits.relative", isLimit, "a number"],
  ["verification.limits.iou", isLimit, "a number"],
  ["vocabulary", isVocabulary, "names, each once, the rule `strongest` and labels_only"],
];
const lookUp = (body, key) => key.split(".").reduce((now, part) => (isObject(now) ? now[part] : undefined), body);

// A folder behind an address, relative to the page where it is one.
export function fromAddress(address, told = () => {}) {
  const base = new URL(String(address).replace(/\/?$/, "/"), globalThis.location?.href);
  return {
    name: String(address),
    folder: decodeURIComponent(base.pathname.split("/").filter(Boolean).at(-1) ?? "bundle"),
    async read(file) {
      let answer;
      try {
        answer = await fetch(new URL(file, base));
      } catch (error) {
        throw new BundleError(`${address}: ${file} cannot be fetched: ${inOneLine(error)}; is the server running?`);
      }
      if (!answer.ok) throw new BundleError(`${address}: ${file} cannot be fetched: the server answered ${answer.status}; expected a folder written by \`digseg-export\``);
      const body = new Uint8Array(await answer.arrayBuffer());
      told(file, body.length);
      return body;
    },
  };
}

// Reads and checks everything. Throws BundleError naming the first thing that is wrong.
export async function openBundle(source) {
  const manifest = readManifest(await source.read("manifest.json"), source.name);
  for (const [name, entry] of Object.entries(manifest.files)) checkEntry(name, entry, source.name);
  const files = new Map();
  await Promise.all(Object.entries(manifest.files).map(async ([name, entry]) => files.set(name, await checked(source, name, entry))));
  const listed = new Set(["manifest.json", "model.sig", ...files.keys()]);
  const extra = (await source.list?.() ?? []).filter((name) => !listed.has(name) && !name.startsWith(".")).sort();
  if (extra.length) throw new BundleError(`${source.name} holds ${quoted(extra[0])}, which its manifest does not list; a bundle holds what was hashed and nothing else; move it away`);
  return new Bundle(source, manifest, files, await digestOf(manifest.files));
}

// A bundle whose every file has its hash. files: name -> bytes.
class Bundle {
  constructor(source, manifest, files, digest) {
    Object.assign(this, { name: source.name, folder: source.folder ?? source.name, manifest, files, digest });
  }

  get profile() { return this.manifest.shapes.B === "dynamic" ? null : this.manifest.shapes; }

  get vocabulary() { return this.manifest.vocabulary ?? null; }

  // The bytes of a listed file. Throws BundleError for one that the manifest does not list.
  file(name) {
    const body = this.files.get(name);
    if (!body) throw new BundleError(`${this.name} lists no file ${name}; ${HOW_TO_EXPORT}`);
    return body;
  }

  // The bytes of a graph that asks for nothing but its own listed weights. Throws BundleError otherwise.
  graph(name) {
    const body = this.file(name), data = dataOf(name);
    checkWeights(body, `${this.name}/${name}`, data, this.files.get(data)?.length ?? null);
    return body;
  }

  json(name) { return parse(this.file(name), `${this.name}/${name}`); }

  // The weights of a graph and of the form of it that a CPU runs; null where it has none outside.
  weights(graph) {
    const name = dataOf(graph);
    return this.files.has(name) ? { path: name, data: this.files.get(name) } : null;
  }

  // Largest working size, in pixels of the longer side, and the one taken where none is asked for.
  workingSize(width, height, asked) {
    const { profile } = this, longer = Math.max(width, height);
    if (!profile) {
      const { image_size: usual, image_size_max: largest } = this.manifest.model;
      return asked ?? Math.min(Math.max(longer, usual), Math.max(usual, largest ?? usual));
    }
    const most = Math.min(Math.floor(longer * profile.H.max / height), Math.floor(longer * profile.W.max / width));
    if (asked != null && asked > most) {
      throw new InputError(`a picture of ${width}x${height} pixels worked at ${asked} is larger than the shapes this model was exported for; at most ${most} fits its proportions; ask for a smaller size, or export with others`);
    }
    return asked ?? Math.min(Math.max(profile.H.opt, profile.W.opt), most);
  }
}

const dataOf = (graph) => `${graph.replace(/\.onnx$/, "").replace(/\.fp32$/, "")}.data`;

function parse(body, name) {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(body), found = JSON.parse(text);
    if (!isObject(found)) throw new Error("it is no JSON object");
    const twice = keyTwice(text);
    if (twice !== null) throw new Error(`the key ${quoted(twice)} stands there twice`);
    return found;
  } catch (error) {
    throw new BundleError(`${name} cannot be read: ${inOneLine(error)}; ${HOW_TO_EXPORT}`);
  }
}

// The first key that an object of this JSON has twice; null for none.
function keyTwice(text) {
  const objects = [];
  for (const [part, colon] of text.matchAll(/"(?:[^"\\]|\\.)*"(\s*:)?|[{}]/g)) {
    if (part === "{") objects.push(new Set());
    else if (part === "}") objects.pop();
    else if (colon) {
      const key = JSON.parse(part.slice(0, -colon.length));
      if (objects.at(-1).has(key)) return key;
      objects.at(-1).add(key);
    }
  }
  return null;
}

function readManifest(body, where) {
  const path = `${where}/manifest.json`, manifest = parse(body, path), found = manifest.format;
  if (found === ONE_PIECE) {
    const precision = lookUp(manifest, "precision.name"), option = /^[a-z0-9]{1,8}$/.test(precision) ? ` --precision ${precision}` : "";
    throw new BundleError(`${where} has format '${ONE_PIECE}', whose pictures cannot be encoded apart from prompts; this module reads '${FORMAT}'; make it from its checkpoint: digseg-export CHECKPOINT${option}`);
  }
  if (found !== FORMAT) throw new BundleError(`${path} has format ${quoted(String(found))}, this module reads '${FORMAT}'; use the release that wrote it, or export it again`);
  for (const [key, fits, wanted] of NEEDED) {
    const value = lookUp(manifest, key);
    if (!fits(value)) throw new BundleError(`${path}: ${key} is ${quoted(JSON.stringify(value) ?? "missing")}; expected ${wanted}; ${HOW_TO_EXPORT}`);
  }
  if (manifest.contract.version !== CONTRACT) throw new BundleError(`${path} has contract version ${manifest.contract.version}, this module reads ${CONTRACT}; ${HOW_TO_EXPORT}`);
  return manifest;
}

function checkEntry(name, entry, where) {
  if (!NAME.test(name) || !isObject(entry)) throw new BundleError(`${where}/manifest.json lists the file name ${quoted(name)}; expected plain names only; ${HOW_TO_EXPORT}`);
  if (PLANS.some((end) => name.endsWith(end))) throw new BundleError(`${where}/manifest.json lists ${quoted(name)}; a plan is code for one machine and never part of a bundle; ${HOW_TO_EXPORT}`);
}

async function checked(source, name, entry) {
  const body = await source.read(name), path = `${source.name}/${name}`;
  if (body.length !== entry.size) throw new BundleError(`${path} is damaged: ${entry.size} bytes expected, got ${body.length}; copy or export the bundle again`);
  const found = await sha256(body);
  if (found !== entry.sha256) throw new BundleError(`${path} is damaged: SHA-256 ${String(entry.sha256).slice(0, 12)}... expected, got ${found.slice(0, 12)}...; copy or export the bundle again`);
  return body;
}

async function sha256(body) {
  if (!globalThis.crypto?.subtle) throw new BundleError("hashes cannot be checked here: browsers have SHA-256 only on https and on localhost; open this page there");
  return Array.from(new Uint8Array(await crypto.subtle.digest("SHA-256", body)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// One hash over all files, as Python's `Bundle.digest`.
const digestOf = (files) => sha256(new TextEncoder().encode(Object.keys(files).sort().map((name) => `${name}:${files[name].sha256}`).join("")));

// The tensors of a safetensors file, those that are `needed` among them: name -> {type, dims, data}.
export function safetensors(body, name, needed = []) {
  const kinds = { F32: ["float32", Float32Array], I64: ["int64", BigInt64Array], BOOL: ["bool", Uint8Array], U8: ["uint8", Uint8Array], U16: ["uint16", Uint16Array] };
  try {
    const length = Number(new DataView(body.buffer, body.byteOffset, 8).getBigUint64(0, true));
    const head = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(body.subarray(8, 8 + length)));
    const found = Object.fromEntries(Object.entries(head).filter(([key]) => key !== "__metadata__").map(([key, { dtype, shape, data_offsets: [from, to] }]) => {
      if (!Object.hasOwn(kinds, dtype)) throw new Error(`the type ${quoted(String(dtype))} of ${quoted(key)} is unknown`);
      const [type, Kind] = kinds[dtype], whole = [from, to, ...shape].every((number) => Number.isSafeInteger(number) && number >= 0);
      const size = whole ? shape.reduce((product, side) => product * side, Kind.BYTES_PER_ELEMENT) : -1;
      if (to - from !== size || to > body.length - 8 - length) throw new Error(`${quoted(key)} has other bytes than its shape`);
      return [key, { type, dims: shape, data: new Kind(body.slice(8 + length + from, 8 + length + to).buffer) }];
    }));
    const lacking = needed.find((key) => !Object.hasOwn(found, key));
    if (lacking) throw new Error(`${quoted(lacking)} lacks`);
    return found;
  } catch (error) {
    throw new BundleError(`${name} holds no golden sample that can be read: ${inOneLine(error)}; export the bundle again`);
  }
}

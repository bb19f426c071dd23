/** Text-prompted segmentation in browsers and Node: a DiGSeg bundle, run by ONNX Runtime. See docs/web.md. */

/** Base of all errors thrown on purpose: what, expected, got, and what to do next. */
export class DigsegError extends Error {}
/** What was asked for does not exist or does not fit: an option, a backend, a size. */
export class UsageError extends DigsegError {}
/** A picture or prompt that cannot be used. */
export class InputError extends DigsegError {}
/** A bundle that is incomplete, damaged, or of another format version. */
export class BundleError extends DigsegError {}
/** A backend that cannot run here, answers wrongly, or broke while running. */
export class BackendError extends DigsegError {}

/** Version of this package. */
export const VERSION: string;

/** A decoded picture: bytes of RGB or RGBA, row by row, of at least 8 pixels a side and at most 64 million; transparency lies over white. */
export interface Picture {
  data: Uint8Array | Uint8ClampedArray;
  width: number;
  height: number;
  /** Named in messages and results. */
  path?: string;
  /** What its reading leaves to be said; goes into `Result.notes`. */
  notes?: readonly string[];
}

/** Where the files of a bundle come from. */
export interface Source {
  name: string;
  /** The name that results give the model. */
  folder?: string;
  read(file: string): Promise<Uint8Array>;
  /** Names of the files that are there; those that the manifest does not list are refused. */
  list?(): Promise<string[]>;
}

/** One runtime that may run here. */
export interface Runtime {
  /** "webgpu", "wasm" or, in Node, "cpu". */
  name: "webgpu" | "wasm" | "cpu";
  /** The module of ONNX Runtime. */
  load(): Promise<unknown>;
  /** Why it cannot run this bundle here; "" where it can. named: it was asked for by name. */
  probe?(bundle: { manifest: Record<string, any>; files: Map<string, Uint8Array> }, named?: boolean): Promise<string>;
}

export interface LoadOptions {
  /** "auto": the first of the runtimes that runs here and answers the golden sample rightly; or the name of one. */
  backend?: "auto" | "webgpu" | "wasm" | "cpu";
  /** Which may run, in this order. Browsers: webgpu, wasm. Node: cpu, wasm. */
  runtimes?: readonly Runtime[];
  /** 1 to 64. WebAssembly: 1, or up to 4 in a page that is cross-origin isolated; cpu: its own choice. */
  threads?: number;
  /** Told of every file that came and its bytes. */
  progress?(file: string, bytes: number): void;
}

export interface EncodeOptions {
  /** Pixels of the longer side that the picture is worked at; by default its own, within what the model is for. */
  size?: number;
}

export interface SegmentOptions extends EncodeOptions {
  /** Probability from which a pixel belongs to a mask; 0.5. */
  threshold?: number;
  /** What the label map shows where masks meet; "parts", of a fixed vocabulary "strongest". */
  labels?: "parts" | "strongest" | "smallest";
  /** Also make masks for prompts that presence says are not there. */
  allPrompts?: boolean;
  /** Contrast prompts: they compete for pixels and are not returned. */
  against?: readonly string[];
  /** false: keep no masks, figures and label map alone. */
  masks?: boolean;
}

/** What was tried when an engine was loaded. */
export interface Tried {
  backend: string;
  usable: boolean;
  right: boolean;
  reason: string;
  /** Relative L2 error on the golden sample, and mean mask IoU with it (of a fixed vocabulary: share of the label map). */
  error: number | null;
  iou: number | null;
  detail?: string;
  seconds?: number;
}

/** A picture, encoded by one engine. */
export class Encoding {
  readonly width: number;
  readonly height: number;
  /** Pixels of the longer side that it is worked at. */
  readonly size: number;
  readonly path: string | null;
  readonly notes: readonly string[];
  readonly seconds: Record<string, number>;
  /** Lets go of what the backend keeps. */
  dispose(): void;
}

/** Run lengths as COCO compresses them. */
export interface RunLengths {
  size: [height: number, width: number];
  counts: string;
}

export namespace rle {
  function encode(mask: ArrayLike<number>, width: number, height: number): RunLengths;
  function decode(lengths: RunLengths): Uint8Array;
}

/** Masks of one picture, one per prompt, at the picture's own size. */
export class Result {
  readonly prompts: string[];
  readonly width: number;
  readonly height: number;
  readonly picture: string | null;
  /** Row by row, 0 where no mask is set, else 1 + the number of a prompt. */
  readonly labelMap: Int32Array;
  readonly pixels: number[];
  /** Share of the picture, 0..1. */
  readonly areas: number[];
  /** Mean probability inside each mask, 0 when empty; null where the bundle gives none. */
  readonly scores: (number | null)[];
  /** [left, top, right, bottom], right and bottom exclusive; null for an empty mask. */
  readonly boxes: ([number, number, number, number] | null)[];
  /** Probability to be in the picture at all; null for a model that does not say. */
  readonly presence: number[] | null;
  /** Which prompts presence let through; the others were not decoded. */
  readonly there: boolean[];
  /** Which masks are no smaller than one logit. */
  readonly found: boolean[];
  readonly seconds: Record<string, number>;
  readonly notes: string[];
  /** Row by row, 1 inside. */
  mask(k: number): Uint8Array;
  readonly masks: Uint8Array[];
  /** COCO run lengths; null for an empty mask. */
  rle(k: number): RunLengths | null;
  /** Logits as the model gave them, padding included. */
  logits(k: number): Float32Array;
  /** Probability of every pixel. */
  confidence(k: number): Float32Array;
  /** `digseg.result/1`, docs/runtime.md, as plain JSON values. */
  record(options?: { rle?: boolean }): Record<string, any>;
}

/** A bundle and a backend that answers it rightly. Questions are answered one after the other. */
export class Engine {
  /**
   * Opens a bundle; every hash is checked, and the golden sample is answered before anything else.
   * @param bundle an address, in Node also a folder, or a source
   * @throws BundleError, UsageError, BackendError where nothing runs here and is right
   */
  static load(bundle: string | URL | Source, options?: LoadOptions): Promise<Engine>;
  /** What runs, in words. */
  readonly backend: string;
  readonly tried: readonly Tried[];
  /** What was usable and answered wrongly. */
  readonly fallbacks: string[];
  readonly model: { name: string; sha256: string };
  /** Pixels of the longer side that the model was trained or exported for. */
  readonly imageSize: number;
  /** The names of a fixed vocabulary; [] for a bundle that takes any prompt. */
  readonly vocabulary: string[];
  /** Token numbers of a prompt, start and end included. */
  tokenize(prompt: string): number[];
  /** A picture, encoded once to be asked any number of times. */
  encode(picture: Picture, options?: EncodeOptions): Promise<Encoding>;
  /** One mask per prompt; of a fixed vocabulary one per name, all of them where no prompts are given. */
  segment(picture: Picture | Encoding, prompts?: readonly string[] | null, options?: SegmentOptions): Promise<Result>;
  close(): Promise<void>;
}

/** The runtimes that are tried where none are given. */
export const runtimes: readonly Runtime[];
/** A bundle behind an address. */
export function fromAddress(address: string | URL, told?: (file: string, bytes: number) => void): Source;
/** Browsers: a picture file, decoded. Throws InputError for what this browser cannot read. */
export function pictureOf(file: Blob, name?: string): Promise<Picture>;
/** Browsers: why WebGPU cannot run a bundle here; "" where it can. */
export function probeWebGpu(bundle: { manifest: Record<string, any>; files: Map<string, Uint8Array> }, named?: boolean): Promise<string>;
/** Node: a bundle in a folder. */
export function fromFolder(folder: string | URL): Source;

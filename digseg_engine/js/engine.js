// The engine: a bundle and a backend that answers it rightly, opened once; pictures are encoded once and asked any number of times.

import { fromAddress, openBundle } from "./bundle.js";
import { BackendError, InputError, UsageError, counted, quoted } from "./errors.js";
import { borderOf, checkRule, label, labelOfMap, probability } from "./labels.js";
import { checkPicture, fit, hint, unfit, unfitLabels } from "./pictures.js";
import { Result } from "./result.js";
import { Backend, checkGolden } from "./sessions.js";
import { Tokenizer, checkPrompts, tokenBucket } from "./tokenizer.js";

const ABSENT = -20, BUDGET = 2 ** 29, BYTES_PER_PIXEL = 64, MOST_TEXT = 64 << 20, MOST_SIZE = 4096;
const ONLY_OPEN = "export it without --vocabulary for that";
const defaults = { runtimes: [], source: fromAddress };

// What runs, and where bundles come from, where nothing is said: set once, by the entry of the browser or of Node.
export const setDefaults = (given) => Object.assign(defaults, given);

export class Engine {
  #bundle; #backend; #tokenizer; #texts = new Map(); #textBytes = 0; #turn = Promise.resolve(); #mark = Symbol("engine");

  // Opens a bundle (every hash is checked) on the first backend that runs here and answers the golden sample rightly. bundle: an
  // address, in Node a folder, or a source (see bundle.js). Options: backend ("auto", or the name of one of them), runtimes (which
  // may run, in this order), threads, progress(file, bytes) for every file that came.
  static async load(bundle, { backend = "auto", runtimes = defaults.runtimes, threads, progress } = {}) {
    const wanted = runtimes.filter(({ name }) => backend === "auto" || name === backend);
    if (!wanted.length) throw new UsageError(`unknown backend ${quoted(String(backend))}; expected auto or one of ${runtimes.map(({ name }) => name).join(", ") || "those given as runtimes"}`);
    if (threads != null && !(Number.isInteger(threads) && threads >= 1 && threads <= 64)) throw new UsageError(`threads must be a whole number from 1 to 64, got ${threads}; leave it out`);
    const engine = new Engine();
    engine.#bundle = await openBundle(typeof bundle?.read === "function" ? bundle : defaults.source(bundle, progress));
    engine.#tokenizer = engine.#bundle.vocabulary ? null : new Tokenizer(engine.#bundle.json("tokenizer.json"));
    engine.tried = [];
    for (const runtime of wanted) {
      const row = await engine.#try(runtime, threads, backend !== "auto");
      engine.tried.push(row);
      if (row.right) break;
    }
    const chosen = engine.tried.at(-1);
    if (!chosen.right) throw new BackendError(`no backend can run here and is right: ${engine.tried.map(({ backend: name, reason }) => `${name}: ${reason}`).join("; ")}`);
    engine.#bundle.files.clear(); // the sessions have their own
    return engine;
  }

  async #try(runtime, threads, named) {
    const row = { backend: runtime.name, usable: false, right: false, reason: "", error: null, iou: null }, began = performance.now();
    let backend = null;
    try {
      row.reason = await runtime.probe?.(this.#bundle, named) ?? "";
      if (row.reason) return row;
      backend = await Backend.open(this.#bundle, runtime, threads);
      Object.assign(row, { usable: true, detail: backend.detail }, await checkGolden(backend, this.#bundle));
    } catch (error) {
      if (!(error instanceof BackendError)) throw error;
      row.reason = error.message;
    }
    row.seconds = (performance.now() - began) / 1000;
    if (row.right) this.#backend = backend;
    else await backend?.close();
    return row;
  }

  // What runs, in words.
  get backend() { return this.#open().detail; }

  // What was usable and answered wrongly, in words.
  get fallbacks() { return this.tried.filter((row) => row.usable && !row.right).map((row) => `${row.backend}: ${row.reason}`); }

  get model() { return { name: this.#bundle.folder, sha256: this.#bundle.digest }; }

  get imageSize() { return this.#bundle.profile ? Math.max(this.#bundle.profile.H.opt, this.#bundle.profile.W.opt) : this.#bundle.manifest.model.image_size; }

  // The names that a folded bundle answers for; [] for one that takes any prompt.
  get vocabulary() { return [...this.#bundle.vocabulary?.names ?? []]; }

  // Token numbers of a prompt, start and end included.
  tokenize(prompt) {
    if (!this.#tokenizer) throw new UsageError(`this bundle has a fixed vocabulary and no tokenizer; ${ONLY_OPEN}`);
    return this.#tokenizer.ids(prompt);
  }

  // Lets the sessions go; every later use is an error.
  async close() {
    await this.#turn;
    const backend = this.#backend;
    this.#backend = null;
    await backend?.close();
  }

  // A picture {data, width, height, path?, notes?} of RGB or RGBA bytes, encoded once to be asked any number of times. size: pixels
  // of the longer side that it is worked at.
  encode(picture, { size } = {}) { return this.#inTurn(() => this.#encode(picture, size)); }

  // One mask per prompt about a picture or an encoding; of a folded bundle about its names, all of them where none is given.
  segment(picture, prompts = null, { size, threshold = 0.5, labels, allPrompts = false, against = [], masks = true } = {}) {
    return this.#inTurn(() => this.#segment(picture, prompts, { size, threshold, labels, allPrompts, against, masks }));
  }

  // ---- steps

  #open() {
    if (!this.#backend) throw new UsageError("this engine is closed; load it again with Engine.load");
    return this.#backend;
  }

  // Sessions answer one question at a time.
  #inTurn(task) {
    const done = this.#turn.then(task);
    this.#turn = done.catch(() => {});
    return done;
  }

  async #encode(given, size) {
    const backend = this.#open(), { manifest, profile } = this.#bundle, { stride } = manifest.model, seconds = {}, lap = laps(seconds);
    if (size != null && !(Number.isInteger(size) && size >= 2 * stride && size <= MOST_SIZE)) throw new UsageError(`working size must be ${2 * stride} to ${MOST_SIZE} pixels, got ${size}`);
    const picture = checkPicture(given), longer = this.#bundle.workingSize(picture.width, picture.height, size);
    const { pixels, frame } = fit(picture, longer, stride, profile ? [profile.H.min, profile.W.min] : [0, 0]);
    this.#checkFrame(frame);
    lap("fit");
    const copies = profile?.B.min ?? 1, image = new Float32Array(pixels.length * copies);
    for (let i = 0; i < copies; i++) image.set(pixels, i * pixels.length);
    const { encoding } = await backend.run("image_encoder", { image: backend.tensor("float32", image, [copies, 3, ...frame.working]) });
    lap("encode");
    return new Encoding(encoding, frame, picture.path ?? null, [...picture.notes ?? []], seconds, this.#mark);
  }

  #checkFrame({ working }) {
    const { profile } = this.#bundle;
    ["H", "W"].forEach((axis, i) => {
      if (profile && working[i] > profile[axis].max) throw new InputError(`the model's input would have ${working[i]} pixels on a side, this bundle was exported for at most ${profile[axis].max}; use a smaller working size`);
    });
  }

  async #segment(given, prompts, options) {
    this.#open();
    // 1 check the request
    const texts = this.#texted(prompts), names = this.#bundle.vocabulary, rule = options.labels ?? (names ? "strongest" : "parts");
    this.#checkOptions(options, rule);
    const border = borderOf(options.threshold), against = options.against.length ? checkPrompts(options.against) : [];
    const rivals = [...new Set(against.filter((text) => !texts.includes(text)))], seconds = {}, lap = laps(seconds);
    // 2 prompts, encoded once each
    const text = names ? null : await this.#fold([...texts, ...rivals]); // keys [K, S, H, d, L], values [K, S, H, L, Co], mask [K, L]
    lap("text");
    // 3 the picture, encoded once
    const picture = given instanceof Encoding ? given.checked(this.#mark, options.size) : await this.#encode(given, options.size); // [B, M, H / s, W / s]
    if (picture !== given) Object.assign(seconds, picture.seconds);
    lap("");
    // 4 presence of all prompts, masks of those that are there
    const found = names ? await this.#askNames(picture, texts, lap) : await this.#ask(picture, text, options.allPrompts, lap);
    if (picture !== given) picture.dispose();
    // 5 back to the picture's own pixels: masks, scores, label map
    const { frame } = picture, kept = new Map(), keep = (k, mask) => { if (options.masks) kept.set(k, mask); };
    const { labelMap, answers } = found.map ? labelOfMap(unfitLabels(found.map, frame), texts.length, frame.original, keep)
      : label(found.planes.slice(0, texts.length), (plane) => unfit(plane, found.cells, frame), frame.original, { border, labels: rule }, found.planes.slice(texts.length), keep);
    lap("label");
    const notes = [...this.fallbacks, ...picture.notes, hint(frame)].filter(Boolean);
    return new Result({
      prompts: texts, frame, labelMap, answers, masks: kept, cells: found.cells, planes: found.planes?.slice(0, texts.length) ?? null,
      presence: found.presence?.slice(0, texts.length) ?? null, there: found.there.slice(0, texts.length), seconds, notes, picture: picture.path,
      about: { model: this.model, backend: this.backend, size: picture.size, threshold: options.threshold, labels: rule, against: rivals, allPrompts: options.allPrompts },
    });
  }

  #texted(prompts) {
    const names = this.#bundle.vocabulary?.names;
    if (!names) return checkPrompts(prompts ?? []);
    const texts = prompts == null ? [...names] : checkPrompts(prompts), strange = texts.find((text) => !names.includes(text));
    if (strange !== undefined) {
      const shown = names.slice(0, 10).join(", "), more = names.length > 10 ? ` and ${names.length - 10} more` : "";
      throw new InputError(`${quoted(strange)} is not in this bundle's vocabulary; it answers for ${counted(names.length, "name")}: ${shown}${more}; a bundle exported without --vocabulary takes any prompt`);
    }
    return texts;
  }

  #checkOptions({ threshold, allPrompts, against }, rule) {
    const names = this.#bundle.vocabulary;
    checkRule(rule);
    borderOf(threshold);
    if (!names) return;
    if (against.length) throw new UsageError(`this bundle's names compete inside its graph, and contrast prompts cannot join them; ${ONLY_OPEN}`);
    if (allPrompts) throw new UsageError(`this bundle turns names that are not there away inside its graph; leave allPrompts out, or ${ONLY_OPEN}`);
    if (rule !== "strongest") throw new UsageError(`this bundle's labels are those of the strongest name, ${quoted(rule)} was asked for; leave labels out, or ${ONLY_OPEN}`);
    if (names.labels_only && threshold !== 0.5) throw new UsageError("this bundle was exported with --labels-only and answers its label map alone; export it without for a threshold other than 0.5");
  }

  // Prompts are encoded one by one, so that what a prompt finds never depends on its company; the last ones asked are kept.
  async #folded(prompt) {
    const known = this.#texts.get(prompt);
    if (known) {
      this.#texts.delete(prompt);
      this.#texts.set(prompt, known);
      return known;
    }
    const backend = this.#open(), ids = this.#tokenizer.ids(prompt), { profile } = this.#bundle;
    const length = tokenBucket(ids.length), row = Array.from({ length }, (_, i) => BigInt(ids[Math.min(i, ids.length - 1)]));
    if (profile && ids.length > profile.L.max) throw new InputError(`a prompt has ${ids.length} tokens, this model was exported for at most ${profile.L.max} (start and end included); shorten it`);
    const { text_keys: keys, text_values: values } = await backend.run("text_encoder", {
      token_ids: backend.tensor("int64", BigInt64Array.from(row), [1, length]),
      token_mask: backend.tensor("bool", Uint8Array.from(row, (_, i) => Number(i < ids.length)), [1, length]),
    });
    const fresh = { keys: { data: keys.data.slice(), dims: keys.dims.slice(1) }, values: { data: values.data.slice(), dims: values.dims.slice(1) }, tokens: ids.length };
    this.#texts.set(prompt, fresh);
    this.#textBytes += sizeOf(fresh);
    for (const [oldest, text] of this.#texts) {
      if (this.#textBytes <= MOST_TEXT || oldest === prompt) break;
      this.#texts.delete(oldest);
      this.#textBytes -= sizeOf(text);
    }
    return fresh;
  }

  async #fold(prompts) {
    const parts = [], { profile } = this.#bundle;
    for (const prompt of prompts) parts.push(await this.#folded(prompt));
    const bucket = tokenBucket(Math.max(...parts.map(({ tokens }) => tokens)));
    const length = profile ? Math.min(Math.max(bucket, profile.L.min), profile.L.max) : bucket;
    return parts.map(({ keys, values, tokens }) => ({
      keys: toLength(keys, length, 3), values: toLength(values, length, 2), mask: Uint8Array.from({ length }, (_, i) => Number(i < tokens)),
    }));
  }

  // Presence of all K prompts about one picture, and logits of those that are there; ABSENT everywhere for the others.
  async #ask(picture, text, allPrompts, lap) {
    const { manifest } = this.#bundle, limit = allPrompts ? null : manifest.presence?.threshold ?? null;
    const logitsOf = await this.#asked("presence", picture, text), presence = logitsOf && logitsOf.rows.map(([logit]) => logit);
    const there = text.map((_, k) => !(presence && limit !== null && presence[k] < limit));
    if (presence) lap("presence");
    const active = text.flatMap((_, k) => (there[k] ? [k] : [])), asked = active.length ? await this.#asked("mask_decoder", picture, active.map((k) => text[k])) : null;
    lap("masks");
    const cells = asked?.dims ?? picture.frame.working.map((side) => side / this.tried.at(-1).cell);
    const blank = new Float32Array(cells[0] * cells[1]).fill(ABSENT);
    return { cells, planes: text.map((_, k) => (there[k] ? asked.rows[active.indexOf(k)] : blank)), presence: presence?.map(probability) ?? null, there };
  }

  // What a graph answers about prompts, so many at a time: rows [K] and the axes of one. Null for a graph that the bundle lacks.
  async #asked(graph, picture, text) {
    const backend = this.#open(), { profile } = this.#bundle, [height, width] = picture.frame.working, rows = [];
    if (!backend.has(graph)) return null;
    const most = Math.min(profile?.K.max ?? Infinity, Math.max(1, Math.floor(BUDGET / (BYTES_PER_PIXEL * height * width))));
    let dims = [];
    for (let k = 0; k < text.length; k += most) {
      const part = text.slice(k, k + most), count = part.length;
      while (part.length < (profile?.K.min ?? 1)) part.push(part.at(-1));
      const stack = (name, type) => backend.tensor(type, joined(part.map((each) => each[name].data ?? each[name])), [part.length, ...part[0][name].dims ?? [part[0].mask.length]]);
      const feeds = { encoding: picture.tensor, text_keys: stack("keys", backend.typeOf(graph, "text_keys")), text_values: stack("values", backend.typeOf(graph, "text_values")), token_mask: stack("mask", "bool") };
      const answer = Object.values(await backend.run(graph, feeds))[0], size = answer.dims.slice(2).reduce((product, side) => product * side, 1);
      dims = answer.dims.slice(2);
      for (let i = 0; i < count; i++) rows.push(answer.data.slice(i * size, (i + 1) * size));
    }
    return { rows, dims };
  }

  // Names of a folded bundle, all of which its graph answers at once; it has turned away what is not there.
  async #askNames(picture, texts, lap) {
    const backend = this.#open(), { vocabulary, manifest } = this.#bundle, numbers = texts.map((text) => vocabulary.names.indexOf(text));
    const wanted = backend.sessions.labels.outputNames.filter((name) => ["presence", vocabulary.labels_only ? "label_map" : "logits"].includes(name));
    const found = await backend.run("labels", { encoding: picture.tensor }, wanted), limit = manifest.presence?.threshold ?? null;
    lap("masks");
    const presence = found.presence ? numbers.map((number) => found.presence.data[number]) : null, there = numbers.map((_, k) => !(presence && limit !== null && presence[k] < limit));
    const answer = { presence: presence?.map(probability) ?? null, there, planes: null, cells: null, map: null };
    if (!vocabulary.labels_only) {
      const [, , height, width] = found.logits.dims, size = height * width;
      return { ...answer, cells: [height, width], planes: numbers.map((number) => found.logits.data.slice(number * size, (number + 1) * size)) };
    }
    const places = new Int32Array(vocabulary.names.length + 1), [rows, columns] = picture.frame.working;
    numbers.map((number, k) => [number, k]).reverse().forEach(([number, k]) => { places[number + 1] = k + 1; }); // of a name asked twice, the first
    return { ...answer, map: Int32Array.from(found.label_map.data.subarray(0, rows * columns), (one) => places[one]) };
  }
}

// A picture, encoded by one engine. frame: how it lies in the model's pixels; seconds: per step that led here.
export class Encoding {
  constructor(tensor, frame, path, notes, seconds, owner) { Object.assign(this, { tensor, frame, path, notes, seconds, owner }); }

  get width() { return this.frame.original[1]; }
  get height() { return this.frame.original[0]; }

  // Pixels of the longer side that the picture is worked at.
  get size() { return Math.max(...this.frame.content); }

  checked(owner, size) {
    if (!this.tensor) throw new UsageError("this encoding was let go; encode the picture again");
    if (this.owner !== owner) throw new UsageError("this picture was encoded by another engine, whose model may see it otherwise; encode it with this one");
    if (size != null && size !== this.size) throw new UsageError(`this picture was encoded at a working size of ${this.size} pixels, and ${size} was asked for; encode it again`);
    return this;
  }

  // Lets go of what the backend keeps.
  dispose() {
    this.tensor?.dispose();
    this.tensor = null;
  }
}

// A function that notes the seconds since it was last called under a name; "" for nothing.
function laps(seconds) {
  let last = performance.now();
  return (name) => {
    const now = performance.now();
    if (name) seconds[name] = (now - last) / 1000;
    last = now;
  };
}

const sizeOf = ({ keys, values }) => keys.data.byteLength + values.data.byteLength;

function joined(parts) {
  const out = new parts[0].constructor(parts.reduce((sum, part) => sum + part.length, 0));
  let to = 0;
  for (const part of parts) {
    out.set(part, to);
    to += part.length;
  }
  return out;
}

// Cut or zero-pad one axis; what is cut or added is padding, which the model masks out.
function toLength({ data, dims }, length, axis) {
  const have = dims[axis], inner = dims.slice(axis + 1).reduce((product, side) => product * side, 1), outer = data.length / (have * inner);
  const out = new data.constructor(outer * length * inner), take = Math.min(have, length) * inner;
  for (let i = 0; i < outer; i++) out.set(data.subarray(i * have * inner, i * have * inner + take), i * length * inner);
  return { data: out, dims: dims.map((side, i) => (i === axis ? length : side)) };
}

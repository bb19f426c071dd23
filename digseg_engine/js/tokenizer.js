// Prompts to token numbers: CLIP's byte-pair encoding, read from the bundle's tokenizer.json. Equal to the `tokenizers` library,
// which Python uses (tests/web/test_js_tokenizer.py compares them); what this reader does not know is refused.

import { BundleError, InputError, quoted } from "./errors.js";

export const TOKEN_BUCKETS = [8, 16, 32, 77]; // prompts are padded to the shortest that holds the longest of them
const MOST_TOKENS = TOKEN_BUCKETS.at(-1), MOST_PROMPTS = 10_000, MOST_CHARACTERS = 4096;
const PATTERN = "'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+";
const WORDS = /'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\p{White_Space}\p{L}\p{N}]+/gu;
const BLANK = /^[\p{White_Space}\x1c-\x1f]*$/u, CONTROL = /(?![\t-\r\x1c-\x1f\x85])\p{Cc}/u;

export const tokenBucket = (length) => TOKEN_BUCKETS.find((bucket) => length <= bucket) ?? MOST_TOKENS;

// The prompts as a list. Throws InputError for what no model can be asked.
export function checkPrompts(prompts) {
  if (typeof prompts === "string") throw new InputError(`prompts must be a list of texts, got the single text ${quoted(prompts)}; write [${quoted(prompts)}]`);
  if (!Array.isArray(prompts)) throw new InputError(`prompts must be a list of texts, got ${prompts === null ? "null" : typeof prompts}; write ["red circle"]`);
  if (!prompts.length) throw new InputError('no prompt given; name at least one thing to segment, for example "red circle"');
  if (prompts.length > MOST_PROMPTS) throw new InputError(`${prompts.length} prompts given; at most ${MOST_PROMPTS} are asked at once; ask in several calls`);
  prompts.forEach((prompt, i) => {
    if (typeof prompt !== "string") throw new InputError(`prompt ${i} must be text, got ${typeof prompt}; pass a string`);
    if ([...prompt].length > MOST_CHARACTERS) throw new InputError(`prompt ${i} (${quoted(prompt, 20)}) has ${[...prompt].length} characters, at most ${MOST_CHARACTERS} are read; shorten it`);
    if (BLANK.test(prompt)) throw new InputError(`prompt ${i} is empty; expected a few words, for example "red circle"`);
    if (/\p{Cs}/u.test(prompt)) throw new InputError(`prompt ${i} (${quoted(prompt)}) is not valid text; expected whole characters`);
    const control = prompt.match(CONTROL);
    if (control) throw new InputError(`prompt ${i} (${quoted(prompt)}) holds the control character U+${control[0].charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}; expected words`);
  });
  return [...prompts];
}

export class Tokenizer {
  // body: the object of a tokenizer.json. Throws BundleError for what is not CLIP's byte-pair encoding.
  constructor(body) {
    try {
      this.#readModel(body.model);
      this.steps = body.normalizer ? steps(body.normalizer) : [];
      checkWords(body.pre_tokenizer);
      this.#readEnds(body.post_processor);
      this.#readAdded(body.added_tokens ?? []);
    } catch (error) {
      if (error instanceof BundleError) throw error;
      throw new BundleError(`tokenizer.json cannot be read: ${error.message}; export the bundle again`);
    }
  }

  // Token numbers of one prompt, start and end included. Throws InputError over 77 of them.
  ids(prompt) {
    const ids = this.encode(prompt);
    if (ids.length > MOST_TOKENS) throw new InputError(`prompt ${quoted(prompt, 40)} has ${ids.length} tokens, at most ${MOST_TOKENS} fit (start and end included); shorten it`);
    return ids;
  }

  encode(text) {
    const ids = [this.start];
    for (const part of cut(text, this.raw)) {
      if (typeof part === "number") ids.push(part);
      else this.#plain(part, ids);
    }
    ids.push(this.end);
    return ids;
  }

  #plain(text, ids) {
    for (const part of cut(this.steps.reduce((now, step) => step(now), text), this.normalized)) {
      if (typeof part === "number") ids.push(part);
      else for (const [word] of part.matchAll(WORDS)) this.#word(word, ids);
    }
  }

  #word(word, ids) {
    const bytes = new TextEncoder().encode(word), symbols = [];
    bytes.forEach((byte, i) => {
      const known = this.vocabulary.get(LETTERS[byte] + (i + 1 === bytes.length ? this.suffix : "")) ?? this.unknown;
      if (known !== undefined) symbols.push(known);
    });
    for (const id of this.#merged(symbols)) ids.push(id);
  }

  // Joins pairs, the best rank first and the leftmost among equals, with a heap: long words stay cheap. Entries that no longer
  // describe the pair at their place are skipped.
  #merged(symbols) {
    const next = symbols.map((_, i) => (i + 1 < symbols.length ? i + 1 : -1)), before = symbols.map((_, i) => i - 1), queue = new Heap();
    const at = (i) => (i < 0 || next[i] < 0 ? undefined : this.merges.get(symbols[i] * PAIR + symbols[next[i]]));
    const offer = (i) => { const found = at(i); if (found) queue.push({ ...found, place: i }); };
    symbols.forEach((_, i) => offer(i));
    for (let best = queue.pop(); best; best = queue.pop()) {
      const i = best.place;
      if (symbols[i] < 0 || at(i)?.id !== best.id) continue;
      const gone = next[i];
      symbols[i] = best.id;
      symbols[gone] = -1;
      next[i] = next[gone];
      if (next[gone] >= 0) before[next[gone]] = i;
      next[gone] = -1;
      offer(before[i]);
      offer(i);
    }
    return symbols.filter((id) => id >= 0);
  }

  #readModel(model) {
    if (model.type !== "BPE") unknown(`the model ${quoted(String(model.type))}`);
    for (const key of ["continuing_subword_prefix", "fuse_unk", "byte_fallback", "ignore_merges", "dropout"]) if (model[key]) unknown(key);
    this.suffix = model.end_of_word_suffix ?? "";
    this.vocabulary = new Map(Object.entries(model.vocab));
    this.unknown = model.unk_token == null ? undefined : this.#id(model.unk_token);
    this.merges = new Map();
    model.merges.forEach((pair, rank) => {
      const [left, right] = Array.isArray(pair) ? pair : pair.split(" ");
      const key = this.#id(left) * PAIR + this.#id(right);
      this.merges.set(key, { rank, id: this.#id(left + right) });
    });
  }

  #id(token) {
    const id = this.vocabulary.get(token);
    if (!Number.isInteger(id) || id < 0 || id >= PAIR) throw new BundleError(`tokenizer.json: token ${quoted(String(token))} has no number; export the bundle again`);
    return id;
  }

  #readEnds(post) {
    if (post.type === "RobertaProcessing") [this.start, this.end] = [this.#id(post.cls[0]), this.#id(post.sep[0])];
    else if (post.type === "TemplateProcessing" && post.single.length === 3 && post.single[1].Sequence) {
      [this.start, this.end] = [this.#id(post.single[0].SpecialToken.id), this.#id(post.single[2].SpecialToken.id)];
    } else unknown(`the post-processor ${quoted(String(post.type))}`);
  }

  #readAdded(added) {
    this.raw = [];
    this.normalized = [];
    for (const token of added) {
      for (const key of ["single_word", "lstrip", "rstrip"]) if (token[key]) unknown(`an added token with ${key}`);
      if (!token.content) continue;
      if (token.normalized) this.normalized.push([this.steps.reduce((now, step) => step(now), token.content), token.id]);
      else this.raw.push([token.content, token.id]);
    }
  }
}

const PAIR = 2 ** 26;

function unknown(what) {
  throw new BundleError(`tokenizer.json uses ${what}, which this module does not know; expected CLIP's byte-pair encoding; use a bundle with a fixed vocabulary`);
}

// Normalisers as functions, in order.
function steps({ type, normalizers, pattern, content }) {
  if (type === "Sequence") return normalizers.flatMap(steps);
  if (type === "NFC") return [(text) => text.normalize("NFC")];
  if (type === "Lowercase") return [(text) => Array.from(text, (letter) => letter.toLowerCase()).join("")]; // one by one: no final sigma
  if (type === "Replace" && pattern?.Regex === "\\s+") return [(text) => text.replace(/\p{White_Space}+/gu, () => content)];
  return unknown(type === "Replace" ? "a Replace other than of spaces" : `the normalizer ${quoted(String(type))}`);
}

function checkWords(pre) {
  const [split, bytes] = pre.type === "Sequence" && pre.pretokenizers.length === 2 ? pre.pretokenizers : [];
  if (split?.type !== "Split" || split.pattern.Regex !== PATTERN || split.behavior !== "Removed" || !split.invert) unknown("another split than CLIP's");
  if (bytes.type !== "ByteLevel" || bytes.add_prefix_space) unknown("another byte-level step than CLIP's");
}

// A text cut at added tokens, the leftmost and of those the longest: texts, and numbers of tokens.
function cut(text, tokens) {
  const parts = [];
  let from = 0;
  for (let i = 0; i < text.length;) {
    const [best] = tokens.filter(([content]) => text.startsWith(content, i)).sort((a, b) => b[0].length - a[0].length);
    if (!best) { i++; continue; }
    if (i > from) parts.push(text.slice(from, i));
    parts.push(best[1]);
    from = i += best[0].length;
  }
  if (from < text.length) parts.push(text.slice(from));
  return parts;
}

// The byte-level alphabet: printable Latin-1 bytes stand for themselves, the others for U+0100 upwards, in order.
const LETTERS = (() => {
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => {
    const printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    return String.fromCodePoint(printable ? byte : next++);
  });
})();

class Heap {
  items = [];

  push(item) {
    const { items } = this;
    let i = items.push(item) - 1;
    for (let up = (i - 1) >> 1; i && earlier(item, items[up]); i = up, up = (i - 1) >> 1) items[i] = items[up];
    items[i] = item;
  }

  pop() {
    const { items } = this, first = items[0], last = items.pop();
    if (!items.length) return first;
    let i = 0;
    for (let child = 1; child < items.length; child = 2 * i + 1) {
      if (child + 1 < items.length && earlier(items[child + 1], items[child])) child++;
      if (!earlier(items[child], last)) break;
      items[i] = items[child];
      i = child;
    }
    items[i] = last;
    return first;
  }
}

const earlier = (a, b) => a.rank < b.rank || (a.rank === b.rank && a.place < b.place);

// What `Engine.segment` gives: masks of one picture, one per prompt, at the picture's own size, and the record of them.

import { UsageError } from "./errors.js";
import { probability } from "./labels.js";
import { unfit } from "./pictures.js";
import { encode } from "./rle.js";

export const VERSION = "0.1.0"; // of the package; a test holds it equal to Python's
const places = (value, digits) => Number(value.toFixed(digits));

export class Result {
  #kept; #planes; #cells; #about;

  constructor({ prompts, frame, labelMap, answers, masks, planes, cells, presence, there, seconds, notes, picture, about }) {
    const [height, width] = frame.original;
    Object.assign(this, { prompts, width, height, labelMap, presence, there, seconds, notes, picture });
    [this.#kept, this.#planes, this.#cells, this.#about] = [masks, planes, cells, about];
    this.pixels = answers.map((answer) => answer.pixels);
    this.areas = this.pixels.map((count) => count / (width * height));
    this.scores = answers.map((answer) => answer.score);
    this.boxes = answers.map((answer) => answer.box);
    this.frame = frame;
  }

  // The mask of prompt number k: Uint8Array of height * width, row by row, 1 inside.
  mask(k) {
    if (!(k in this.prompts)) throw new UsageError(`there is no prompt number ${k}; expected 0 to ${this.prompts.length - 1}`);
    if (!this.pixels[k]) return new Uint8Array(this.width * this.height);
    const kept = this.#kept.get(k);
    if (!kept) throw new UsageError("masks were not kept; leave `masks: false` out");
    return kept;
  }

  get masks() { return this.prompts.map((_, k) => this.mask(k)); }

  // COCO run lengths of mask number k; null where it is empty.
  rle(k) { return this.pixels[k] ? encode(this.mask(k), this.width, this.height) : null; }

  // Logits as the model gave them, [h, w] of prompt number k, padding included.
  logits(k) {
    if (!this.#planes) throw new UsageError("this bundle was exported with --labels-only and answers its label map alone; export it without for logits");
    return this.#planes[k];
  }

  // Probability of every pixel to belong to prompt number k.
  confidence(k) { return unfit(this.logits(k), this.#cells, this.frame).map(probability); }

  // Which prompts count as found: those whose mask is no smaller than one logit of the model.
  get found() {
    const { working, content } = this.frame, total = this.width * this.height;
    const cells = this.#planes ? this.#cells[0] * this.#cells[1] * content[0] * content[1] / (working[0] * working[1]) : content[0] * content[1];
    return this.pixels.map((count) => count > 0 && count >= Math.floor(total / Math.max(cells, 1)));
  }

  // The record of docs/runtime.md (`digseg.result/1`) as plain JSON values. rle: with the run lengths of every mask.
  record({ rle = false } = {}) {
    const about = this.#about, { found } = this;
    const masks = this.prompts.map((prompt, k) => ({
      prompt, label: k + 1, found: found[k], area: places(this.areas[k], 6), pixels: this.pixels[k], score: this.scores[k] === null ? null : places(this.scores[k], 4),
      box: this.boxes[k], there: this.there[k], presence: this.presence ? places(this.presence[k], 4) : null, ...(rle ? { rle: this.rle(k) } : {}),
    }));
    return {
      format: "digseg.result/1", version: VERSION, picture: this.picture, width: this.width, height: this.height, model: about.model, backend: about.backend,
      working_size: about.size, threshold: about.threshold, label_rule: about.labels, against: about.against, all_prompts: about.allPrompts, tiles: null,
      seconds: Object.fromEntries(Object.entries(this.seconds).map(([name, value]) => [name, places(value, 5)])), notes: this.notes, refined: [], masks,
    };
  }
}

// From low-resolution logits to masks, scores and a label map at the picture's own size, one prompt at a time: the rules of
// digseg_engine/runtime/labels.py. Only one prompt's full-size logits exist at any moment.

import { UsageError } from "./errors.js";

const LEAST = 1e-6, INSIDE = Math.fround(0.9), SMALLER = Math.fround(0.8), MARGIN = 1e-3;
export const LABEL_RULES = ["parts", "strongest", "smallest"];
const { fround } = Math;

export const probability = (logit) => 0.5 * (1 + Math.tanh(0.5 * logit));

// The threshold as a logit. Throws UsageError for what is no probability.
export function borderOf(threshold) {
  if (!(threshold >= LEAST && threshold <= 1 - LEAST)) throw new UsageError(`threshold is a probability between 0 and 1, got ${threshold}; 0.5 is the usual one`);
  return fround(Math.log(threshold / (1 - threshold)));
}

export function checkRule(rule) {
  if (!LABEL_RULES.includes(rule)) throw new UsageError(`unknown label rule ${JSON.stringify(rule)}; expected one of ${LABEL_RULES.join(", ")}`);
}

// planes: K float32 planes of equal size; enlarge brings one to `count` pixels of the picture, rows of `width`; rivals: planes of
// contrast prompts; keep(k, mask): told of every mask that is not empty. -> labelMap, and per prompt pixels, score and box [left,
// top, right, bottom]. Of equal logits the first prompt wins.
export function label(planes, enlarge, [height, width], { border, labels }, rivals, keep) {
  const count = height * width, floor = new Float32Array(count).fill(border), labelMap = new Int32Array(count);
  for (const rival of rivals) enlarge(rival).forEach((logit, i) => { if (logit > floor[i]) floor[i] = logit; });
  const best = Float32Array.from(floor), answers = planes.map(() => ({ pixels: 0, score: 0, box: null }));
  const some = planes.flatMap((plane, k) => (isEmpty(plane, border) ? [] : [k])), { areas, beats } = precedence(planes, some, border, labels);
  for (const k of some.sort((a, b) => areas[b] - areas[a] || a - b)) { // wholes before their parts
    const full = enlarge(planes[k]), mask = new Uint8Array(count), over = beats[k];
    let pixels = 0, sum = 0;
    for (let i = 0; i < count; i++) {
      const logit = full[i];
      if (!(logit > floor[i])) continue;
      mask[i] = 1;
      pixels++;
      sum += probability(logit);
      if (logit > best[i] || over?.has(labelMap[i])) {
        best[i] = logit;
        labelMap[i] = k + 1;
      }
    }
    if (!pixels) continue;
    answers[k] = { pixels, score: sum / pixels, box: boxOf(mask, width, height) };
    keep(k, mask);
  }
  return { labelMap, answers };
}

// Of a label map that stands for itself: masks are where it shows a name, scores are unknown.
export function labelOfMap(labelMap, names, [height, width], keep) {
  const answers = [];
  for (let k = 0; k < names; k++) {
    const mask = Uint8Array.from(labelMap, (label) => Number(label === k + 1)), pixels = mask.reduce((sum, inside) => sum + inside, 0);
    answers.push({ pixels, score: pixels ? null : 0, box: pixels ? boxOf(mask, width, height) : null });
    if (pixels) keep(k, mask);
  }
  return { labelMap, answers };
}

// Whether a plane's mask is empty at every size: all its logits lie clearly under the border.
function isEmpty(plane, border) {
  const limit = fround(border - MARGIN);
  return plane.every((logit) => logit < limit);
}

// Areas by which prompts are laid down, largest first, and beats: of every prompt the labels that it shows over wherever both masks
// are set, however strong.
function precedence(planes, some, border, rule) {
  const areas = planes.map(() => 0), beats = planes.map(() => null);
  if (rule === "strongest" || planes.length < 2) return { areas, beats };
  const masks = new Map(some.map((k) => [k, Uint8Array.from(planes[k], (logit) => Number(logit > border))]));
  for (const [k, mask] of masks) areas[k] = mask.reduce((sum, inside) => sum + inside, 0);
  for (const k of some.filter((each) => areas[each])) {
    const above = some.filter((l) => (rule === "smallest" ? areas[k] < areas[l]
      : areas[k] <= fround(SMALLER * areas[l]) && shared(masks.get(k), masks.get(l)) >= fround(INSIDE * areas[k])));
    if (above.length) beats[k] = new Set(above.map((l) => l + 1));
  }
  return { areas, beats };
}

function shared(one, other) {
  let count = 0;
  for (let i = 0; i < one.length; i++) count += one[i] & other[i];
  return count;
}

function boxOf(mask, width, height) {
  let left = width, top = height, right = 0, bottom = 0;
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      if (!mask[i]) continue;
      if (x < left) left = x;
      if (x >= right) right = x + 1;
      if (y < top) top = y;
      bottom = y + 1;
    }
  }
  return [left, top, right, bottom];
}

// Pictures to the model's pixels, and logits back to the picture's own: Pillow's bilinear resampling, its fixed-point arithmetic
// included, so that what the model sees is what it sees in Python. The same port as kernels/src/resample.cpp.

import { InputError } from "./errors.js";

const BITS = 32 - 8 - 2; // fraction bits of 8-bit weights: sums of 255 * weight fit 32 bits
const MIN_SIDE = 8, MAX_PIXELS = 64_000_000, SQUEEZED = 3;
const { fround } = Math;

// For every output position: the first source position it reads, how many, and their weights (`width` per output position).
function weightsOf(size, from, to, out) {
  const scale = fround(to - from) / out, wide = Math.max(scale, 1), shrunk = 1 / wide, width = Math.ceil(wide) * 2 + 1;
  const first = new Int32Array(out), count = new Int32Array(out), values = new Float64Array(width * out);
  for (let i = 0; i < out; i++) {
    const center = from + (i + 0.5) * scale;
    const low = Math.max(0, Math.trunc(center - wide + 0.5)), high = Math.min(size, Math.trunc(center + wide + 0.5));
    let sum = 0;
    for (let k = 0; k < high - low; k++) {
      const distance = Math.abs((k + low - center + 0.5) * shrunk);
      values[i * width + k] = distance < 1 ? 1 - distance : 0;
      sum += values[i * width + k];
    }
    if (sum) for (let k = 0; k < high - low; k++) values[i * width + k] /= sum;
    [first[i], count[i]] = [low, high - low];
  }
  return { first, count, values, width };
}

const fixedPoint = ({ values }) => Int32Array.from(values, (value) => Math.trunc(0.5 + value * 2 ** BITS));
const clip = (sum) => { const value = sum >> BITS; return value < 0 ? 0 : value > 255 ? 255 : value; };

// Bytes of `channels` interleaved values, width x height -> RGB of outWidth x outHeight.
export function resizeRgb(pixels, width, height, outWidth, outHeight) {
  const across = outWidth === width ? pixels : columns8(pixels, width, height, outWidth);
  return outHeight === height ? across : rows8(across, 3 * outWidth, height, outHeight);
}

function columns8(pixels, width, height, outWidth) {
  const weights = weightsOf(width, 0, width, outWidth), k = fixedPoint(weights), out = new Uint8ClampedArray(3 * outWidth * height);
  for (let y = 0, to = 0; y < height; y++) {
    for (let x = 0; x < outWidth; x++, to += 3) {
      let red = 1 << (BITS - 1), green = red, blue = red, from = 3 * (y * width + weights.first[x]);
      for (let i = x * weights.width, end = i + weights.count[x]; i < end; i++, from += 3) {
        red += pixels[from] * k[i];
        green += pixels[from + 1] * k[i];
        blue += pixels[from + 2] * k[i];
      }
      out[to] = clip(red);
      out[to + 1] = clip(green);
      out[to + 2] = clip(blue);
    }
  }
  return out;
}

function rows8(pixels, rowValues, height, outHeight) {
  const weights = weightsOf(height, 0, height, outHeight), k = fixedPoint(weights), out = new Uint8ClampedArray(rowValues * outHeight);
  const sums = new Int32Array(rowValues);
  for (let y = 0; y < outHeight; y++) {
    sums.fill(1 << (BITS - 1));
    for (let i = 0; i < weights.count[y]; i++) {
      const weight = k[y * weights.width + i], from = (weights.first[y] + i) * rowValues;
      for (let x = 0; x < rowValues; x++) sums[x] += pixels[from + x] * weight;
    }
    for (let x = 0, to = y * rowValues; x < rowValues; x++) out[to + x] = clip(sums[x]);
  }
  return out;
}

// A plane of float32, [height, width], the part `right` x `bottom` of it -> [outHeight, outWidth].
export function resizePlane(plane, width, height, right, bottom, outWidth, outHeight) {
  [right, bottom] = [fround(right), fround(bottom)];
  let now = plane;
  if (outWidth !== width || right !== width) {
    const weights = weightsOf(width, 0, right, outWidth);
    now = new Float32Array(outWidth * height);
    for (let y = 0, to = 0; y < height; y++) {
      for (let x = 0; x < outWidth; x++, to++) {
        let sum = 0, from = y * width + weights.first[x];
        for (let i = x * weights.width, end = i + weights.count[x]; i < end; i++, from++) sum += plane[from] * weights.values[i];
        now[to] = sum;
      }
    }
  }
  if (outHeight === height && bottom === height) return now;
  const weights = weightsOf(height, 0, bottom, outHeight), out = new Float32Array(outWidth * outHeight), sums = new Float64Array(outWidth);
  for (let y = 0; y < outHeight; y++) {
    sums.fill(0);
    for (let i = 0; i < weights.count[y]; i++) {
      const weight = weights.values[y * weights.width + i], from = (weights.first[y] + i) * outWidth;
      for (let x = 0; x < outWidth; x++) sums[x] += now[from + x] * weight;
    }
    out.set(sums, y * outWidth);
  }
  return out;
}

// Halves to the even number, as Python rounds.
function round(value) {
  const low = Math.floor(value), rest = value - low;
  return rest > 0.5 || (rest === 0.5 && low % 2 === 1) ? low + 1 : low;
}

// {data, width, height, path?, notes?} of RGB or RGBA bytes -> the same with RGB. Throws InputError for what is no picture.
export function checkPicture(picture) {
  const { data, width, height } = picture ?? {};
  const bytes = data instanceof Uint8Array || data instanceof Uint8ClampedArray;
  if (!bytes || ![width, height].every((side) => Number.isInteger(side) && side > 0) || ![3, 4].some((channels) => data.length === channels * width * height)) {
    throw new InputError("a picture must be {data, width, height} with bytes of RGB or RGBA, row by row; decode the file first");
  }
  const name = picture.path ?? "the picture";
  if (Math.min(width, height) < MIN_SIDE) throw new InputError(`${name} is ${width}x${height} pixels; expected at least ${MIN_SIDE}x${MIN_SIDE}; use a larger picture`);
  if (width * height > MAX_PIXELS) throw new InputError(`${name} is ${width}x${height} = ${Math.round(width * height / 1e6)} million pixels, at most ${MAX_PIXELS / 1e6} million are read; reduce it`);
  return data.length === 3 * width * height ? picture : { ...picture, data: overWhite(data) };
}

// Alpha over white, with the rounding of Pillow's alpha_composite.
function overWhite(rgba) {
  const out = new Uint8Array(rgba.length / 4 * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4, to += 3) {
    const alpha = rgba[from + 3];
    for (let c = 0; c < 3; c++) {
      const sum = (rgba[from + c] * alpha + 255 * (255 - alpha)) * 128 + (0x80 << 7);
      out[to + c] = alpha === 255 ? rgba[from + c] : ((sum >> 8) + sum) >> 8 >> 7;
    }
  }
  return out;
}

const VALUES = Float32Array.from({ length: 256 }, (_, byte) => fround(fround(byte / 127.5) - 1));

// The picture at the working size (`longer`: pixels of its longer side), padded right and below by repetition to the stride and to
// `least`: pixels [3, rows, columns] in -1..1, and the frame: working, content and original [height, width].
export function fit({ data, width, height }, longer, stride, least = [0, 0]) {
  const scale = longer / Math.max(width, height), [h, w] = [height, width].map((side) => Math.max(1, round(side * scale)));
  const rgb = w === width && h === height ? data : resizeRgb(data, width, height, w, h);
  const [rows, columns] = [h, w].map((side, axis) => Math.max(Math.ceil(side / stride) * stride, least[axis])), pixels = new Float32Array(3 * rows * columns);
  for (let c = 0, to = 0; c < 3; c++) {
    for (let y = 0; y < rows; y++) {
      const row = Math.min(y, h - 1) * w;
      for (let x = 0; x < columns; x++, to++) pixels[to] = VALUES[rgb[3 * (row + Math.min(x, w - 1)) + c]];
    }
  }
  return { pixels, frame: { working: [rows, columns], content: [h, w], original: [height, width] } };
}

// One plane [h, w] of a frame, at any resolution -> float32 at the picture's own size: padding cut, bilinear.
export function unfit(plane, [h, w], { working, content, original }) {
  const ratio = working[1] / w;
  return resizePlane(plane, w, h, content[1] / ratio, content[0] / ratio, original[1], original[0]);
}

// Labels of the model's pixels, rows of `columns` -> the picture's own size; labels cannot be mixed, so every pixel takes that of
// the nearest.
export function unfitLabels(map, { working, content, original }) {
  const out = new Int32Array(original[0] * original[1]);
  const [rows, columns] = [0, 1].map((axis) => Int32Array.from({ length: original[axis] }, (_, i) => Math.floor((2 * i + 1) * content[axis] / (2 * original[axis]))));
  for (let y = 0, to = 0; y < original[0]; y++) {
    for (let x = 0, row = rows[y] * working[1]; x < original[1]; x++, to++) out[to] = map[row + columns[x]];
  }
  return out;
}

// What to try for a picture that is three times larger than it was worked at, or more; "" for another.
export function hint({ content, original }) {
  const [given, worked] = [Math.max(...original), Math.max(...content)];
  return given >= SQUEEZED * worked ? `worked at ${worked} px, the picture has ${given}; try a larger size` : "";
}

// A picture, what was asked about it, and how to go back. Drawn in no more than DRAWN pixels of its longer side; masks are kept
// as the server sent them, at the picture's own size.

import { decode } from "./rle.js";

export const DRAWN = 2048;

export class Picture {
  constructor(file, name) {
    Object.assign(this, { file, name, bitmap: null, encoded: null, waiting: 0, entries: [], past: [], ideas: [], asked: 0, record: null });
  }

  get size() { return this.encoded ? [this.encoded.width, this.encoded.height] : [this.bitmap.width, this.bitmap.height]; }

  // [width, height] that masks are drawn at.
  get drawn() {
    const [width, height] = this.size, scale = Math.min(1, DRAWN / Math.max(width, height));
    return [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
  }

  remember() {
    this.past.push(this.entries.map((entry) => ({ ...entry })));
    if (this.past.length > 100) this.past.shift();
  }

  undo() {
    if (this.past.length) this.entries = this.past.pop();
  }

  find(prompt) { return this.entries.find((entry) => entry.prompt === prompt); }

  // Answers of one question; the first free colour for each new mask.
  add(record, palette) {
    this.remember();
    this.record = record;
    for (const mask of record.masks) {
      if (this.find(mask.prompt)) continue;
      const entry = { prompt: mask.prompt, mask, shown: true, colour: null, layer: null };
      if (mask.pixels) {
        entry.colour = this.freeColour(palette);
        entry.layer = paint(mask.rle, this.drawn, entry.colour);
      }
      this.entries.push(entry);
    }
  }

  freeColour(palette) {
    const taken = this.entries.filter((entry) => entry.colour).map((entry) => String(entry.colour));
    return palette.find((colour) => !taken.includes(String(colour))) ?? palette[taken.length % palette.length];
  }

  // Entries whose masks are drawn, the largest first, so that none is hidden by another.
  get visible() {
    return this.entries.filter((entry) => entry.shown && entry.layer).sort((a, b) => b.mask.pixels - a.mask.pixels);
  }

  // Visible entries at a point of the picture, 0..1 of its width and height, the smallest mask first.
  at(x, y) {
    const [width, height] = this.drawn, column = Math.floor(x * width), row = Math.floor(y * height);
    if (column < 0 || row < 0 || column >= width || row >= height) return [];
    return this.visible.filter((entry) => entry.layer.inside[row * width + column]).reverse();
  }
}

// A mask as two canvases, its area and its outline, and its pixels for looking up, at [width, height].
function paint(rle, [width, height], [red, green, blue]) {
  const whole = decode(rle), [fullHeight, fullWidth] = rle.size;
  const inside = width === fullWidth && height === fullHeight ? whole : new Uint8Array(width * height);
  if (inside !== whole) {
    for (let y = 0; y < height; y++) {
      const row = Math.floor((y + 0.5) * fullHeight / height) * fullWidth;
      for (let x = 0; x < width; x++) inside[y * width + x] = whole[row + Math.floor((x + 0.5) * fullWidth / width)];
    }
  }
  const area = new ImageData(width, height), edge = new ImageData(width, height);
  const colour = littleEndian(red, green, blue), dark = littleEndian(red * 0.72, green * 0.72, blue * 0.72);
  const areas = new Uint32Array(area.data.buffer), edges = new Uint32Array(edge.data.buffer);
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      if (!inside[i]) continue;
      areas[i] = colour;
      const within = (x === 0 || inside[i - 1]) && (x === width - 1 || inside[i + 1])
        && (y === 0 || inside[i - width]) && (y === height - 1 || inside[i + width]);
      if (!within) edges[i] = dark;
    }
  }
  return { inside, area: canvasOf(area), edge: canvasOf(edge) };
}

const littleEndian = (red, green, blue) => (255 << 24 | Math.round(blue) << 16 | Math.round(green) << 8 | Math.round(red)) >>> 0;

function canvasOf(data) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [data.width, data.height];
  canvas.getContext("2d").putImageData(data, 0, 0);
  return canvas;
}

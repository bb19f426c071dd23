// What can be taken away: the picture with its masks, one mask, the answers, COCO annotations of every picture.

import { decode } from "./rle.js";
import { layers } from "./view.js";

const stem = (name) => name.replace(/\.[^.]*$/, "") || "picture";

function hand(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const text = (value) => new Blob([JSON.stringify(value, null, 1) + "\n"], { type: "application/json" });

function canvasOf(width, height) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  return canvas;
}

const written = (canvas) => new Promise((done) => canvas.toBlob(done, "image/png"));

export async function png(picture, opacity) {
  const [width, height] = picture.size, canvas = canvasOf(width, height), pen = canvas.getContext("2d");
  pen.fillStyle = "white";
  pen.fillRect(0, 0, width, height);
  pen.drawImage(picture.bitmap, 0, 0, width, height);
  layers(pen, picture, opacity);
  hand(await written(canvas), `${stem(picture.name)}.masks.png`);
}

// White inside, black outside, at the picture's own size.
export async function mask(picture, entry) {
  const [height, width] = entry.mask.rle.size, canvas = canvasOf(width, height), inside = decode(entry.mask.rle);
  const data = new ImageData(width, height), pixels = new Uint32Array(data.data.buffer);
  for (let i = 0; i < pixels.length; i++) pixels[i] = inside[i] ? 0xffffffff : 0xff000000;
  canvas.getContext("2d").putImageData(data, 0, 0);
  hand(await written(canvas), `${stem(picture.name)}.mask.${entry.prompt.replace(/[^\p{L}\p{N}]+/gu, "_")}.png`);
}

// The shape of the server's answers, with everything that was asked, in the order of the list.
export function json(picture) {
  const masks = picture.entries.map((entry, k) => ({ ...entry.mask, label: k + 1 }));
  hand(text({ ...picture.record, picture: picture.name, masks }), `${stem(picture.name)}.json`);
}

export function coco(pictures) {
  const names = [...new Set(pictures.flatMap((each) => each.entries.map((entry) => entry.prompt)))];
  const annotations = [];
  pictures.forEach((each, number) => {
    for (const { mask: found, prompt } of each.entries) {
      if (!found.box) continue;
      const [left, top, right, bottom] = found.box;
      annotations.push({
        id: annotations.length + 1, image_id: number + 1, category_id: names.indexOf(prompt) + 1, prompt, segmentation: found.rle,
        bbox: [left, top, right - left, bottom - top], area: found.pixels, score: found.score, iscrowd: 0,
      });
    }
  });
  const images = pictures.map((each, number) => ({ id: number + 1, file_name: each.name, width: each.size[0], height: each.size[1] }));
  hand(text({ images, annotations, categories: names.map((name, k) => ({ id: k + 1, name })) }), "annotations.coco.json");
}

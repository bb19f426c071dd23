// Picture files as a browser decodes them, to bytes of RGBA over white: turned as their metadata say, colours as they are stored.

import { InputError, inOneLine } from "./errors.js";

// A Blob or File -> {data, width, height, path}. Throws InputError for what this browser cannot read.
export async function pictureOf(blob, name = blob.name ?? "the picture") {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch (error) {
    throw new InputError(`${name} cannot be decoded by this browser: ${inOneLine(error)}; save it as PNG or JPEG, or check that it is whole`);
  }
  const { width, height } = bitmap, canvas = new OffscreenCanvas(width, height), pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.fillStyle = "white";
  pen.fillRect(0, 0, width, height);
  pen.drawImage(bitmap, 0, 0);
  bitmap.close();
  return { data: pen.getImageData(0, 0, width, height).data, width, height, path: name };
}

// COCO's compressed run lengths of a mask. Runs go down the columns, begin with zeros, and from the third on are stored as the
// difference to the run two before; each number becomes characters of five bits and a continuation bit, starting at "0".

// Mask (Uint8Array of height * width, row by row, not 0 inside) -> {size: [height, width], counts}.
export function encode(mask, width, height) {
  const runs = [];
  let inside = 0, length = 0;
  for (let x = 0; x < width; x++) {
    for (let y = 0, i = x; y < height; y++, i += width) {
      if ((mask[i] !== 0) !== (inside !== 0)) {
        runs.push(length);
        inside = 1 - inside;
        length = 0;
      }
      length++;
    }
  }
  runs.push(length);
  return { size: [height, width], counts: runs.map((run, i) => characters(i > 2 ? run - runs[i - 2] : run)).join("") };
}

function characters(value) {
  let text = "";
  for (;;) {
    const bits = value & 31;
    value >>= 5;
    const more = value !== (bits & 16 ? -1 : 0);
    text += String.fromCharCode(48 + (more ? bits | 32 : bits));
    if (!more) return text;
  }
}

// {size: [height, width], counts} -> Uint8Array of height * width, row by row, 1 inside.
export function decode({ size: [height, width], counts }) {
  const mask = new Uint8Array(height * width);
  let place = 0, inside = 0;
  for (const length of runsOf(counts)) {
    if (inside) for (let i = place; i < place + length; i++) mask[(i % height) * width + Math.floor(i / height)] = 1;
    place += length;
    inside = 1 - inside;
  }
  return mask;
}

function runsOf(counts) {
  const runs = [];
  let value = 0, shift = 0;
  for (let i = 0; i < counts.length; i++) {
    const bits = counts.charCodeAt(i) - 48;
    value += (bits & 31) * 2 ** shift;
    shift += 5;
    if (bits & 32) continue;
    if (bits & 16) value -= 2 ** shift;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
    value = shift = 0;
  }
  return runs;
}

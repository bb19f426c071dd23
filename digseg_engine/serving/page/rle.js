// COCO's compressed run lengths: runs go down the columns, begin with zeros, and from the third on are stored as the difference
// to the run two before, in characters of five bits and a continuation bit.

export function runs(counts) {
  const found = [];
  let value = 0, shift = 0;
  for (let i = 0; i < counts.length; i++) {
    const bits = counts.charCodeAt(i) - 48;
    value += (bits & 31) * 2 ** shift;
    shift += 5;
    if (bits & 32) continue;
    if (bits & 16) value -= 2 ** shift;
    found.push(found.length > 2 ? value + found[found.length - 2] : value);
    value = shift = 0;
  }
  return found;
}

// {size: [height, width], counts} -> Uint8Array of height * width, row by row, 1 inside.
export function decode({ size: [height, width], counts }) {
  const mask = new Uint8Array(height * width);
  let place = 0, inside = 0;
  for (const length of runs(counts)) {
    if (inside) for (let i = place; i < place + length; i++) mask[(i % height) * width + Math.floor(i / height)] = 1;
    place += length;
    inside = 1 - inside;
  }
  return mask;
}

// Which bytes of which file an ONNX graph asks for, read from its protobuf before any runtime sees it: the rules of
// digseg_engine/graph_files.py. A graph may ask for its own `.data` alone, every byte of it at most once; a runtime in Node would open
// whatever else it names.

import { BundleError, quoted } from "./errors.js";

const EXTERNAL = 1, DEEPEST = 64, MOST_TENSORS = 2 ** 20, KEYS = ["location", "offset", "length", "checksum", "basepath"];
const SIZES = { 1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2, 17: 1, 18: 1, 19: 1, 20: 1 }; // bytes
// Message -> fields that lead to further messages in which tensors may be.
const INSIDE = {
  model: { 7: "graph", 20: "training", 25: "function" },
  training: { 1: "graph", 2: "graph" },
  function: { 7: "node", 11: "attribute" },
  graph: { 1: "node", 5: "tensor", 15: "sparse" },
  node: { 5: "attribute" },
  attribute: { 5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse" },
  sparse: { 1: "tensor", 2: "tensor" },
};
class Wrong extends Error {}

// Throws BundleError where a graph asks for anything but bytes of the file `data`, `size` bytes long (null: there is no such file).
export function checkWeights(graph, path, data, size) {
  try {
    const spans = [...tensors(graph)].map(([begin, end]) => span(graph, begin, end, data, size)).filter(Boolean);
    spans.sort((a, b) => a.begin - b.begin || a.end - b.end);
    spans.slice(1).forEach((right, i) => {
      if (right.begin < spans[i].end) throw new Wrong(`the tensors ${quoted(spans[i].tensor)} and ${quoted(right.tensor)} share bytes of ${data}`);
    });
  } catch (error) {
    if (error instanceof Wrong) throw new BundleError(`${path} is refused: ${error.message}; export the bundle again`);
    throw error;
  }
}

// Begin and end of every TensorProto, those of subgraphs, attributes and functions included.
function* tensors(body) {
  const waiting = [["model", 0, body.length, 0]];
  let seen = 0;
  while (waiting.length) {
    const [kind, begin, end, depth] = waiting.pop();
    if (depth > DEEPEST) throw new Wrong(`its messages lie more than ${DEEPEST} deep within each other`);
    for (const { number, start, stop } of fields(body, begin, end)) {
      const inner = INSIDE[kind][number];
      if (!inner || !stop) continue;
      if (inner !== "tensor") waiting.push([inner, start, stop, depth + 1]);
      else if (++seen > MOST_TENSORS) throw new Wrong(`it has more than ${MOST_TENSORS} tensors`);
      else yield [start, stop];
    }
  }
}

// Where a tensor's bytes lie; null for one that has them in the graph.
function span(body, begin, end, data, size) {
  const where = new Map();
  let tensor = "", kind = 0, count = 1, external = false;
  for (const { number, value, start, stop } of fields(body, begin, end)) {
    if (number === 1) for (const side of stop ? packed(body, start, stop) : [value]) count *= side;
    else if (number === 2) kind = value;
    else if (number === 8) tensor = text(body, start, stop);
    else if (number === 13) {
      const [key, said] = entry(body, start, stop);
      if (where.has(key)) throw new Wrong(`the tensor ${quoted(tensor)} says its ${quoted(key)} twice`);
      where.set(key, said);
    } else if (number === 14) external = value === EXTERNAL;
  }
  if (!external && !where.size) return null;
  if (where.get("location") !== data || size === null || [...where.keys()].some((key) => !KEYS.includes(key))) {
    throw new Wrong(`the tensor ${quoted(tensor)} lies in ${quoted(where.get("location") ?? "nothing")}; expected ${size === null ? "no other file" : quoted(data)}`);
  }
  if (where.has("basepath")) throw new Wrong(`the tensor ${quoted(tensor)} names a folder of its own`);
  const [first, length] = [whole(where.get("offset") ?? "0", "offset", tensor), whole(where.get("length"), "length", tensor)];
  if (first + length > size) throw new Wrong(`the tensor ${quoted(tensor)} is at ${first}..${first + length} of ${data}, which has ${size} bytes`);
  if (!(kind in SIZES) || count * SIZES[kind] !== length) throw new Wrong(`the tensor ${quoted(tensor)} of type ${kind} has ${count} values in ${length} bytes`);
  return { begin: first, end: first + length, tensor };
}

function whole(said, key, tensor) {
  if (!/^\d{1,15}$/.test(said ?? "")) throw new Wrong(`the tensor ${quoted(tensor)} has the ${key} ${quoted(said ?? "nothing")}; expected a whole number`);
  return Number(said);
}

const text = (body, start, stop) => new TextDecoder().decode(body.subarray(start, stop));

// A StringStringEntryProto.
function entry(body, begin, end) {
  const parts = ["", "", ""];
  for (const { number, start, stop } of fields(body, begin, end)) if (number === 1 || number === 2) parts[number] = text(body, start, stop);
  return [parts[1], parts[2]];
}

function* packed(body, begin, end) {
  for (let at = begin; at < end;) {
    const [value, next] = varint(body, at, end);
    yield value;
    at = next;
  }
}

// The fields of one message: number, value of a varint, begin and end of bytes (0, 0: it has none).
function* fields(body, begin, end) {
  for (let at = begin; at < end;) {
    const [tag, behind] = varint(body, at, end), number = Math.floor(tag / 8), wire = tag % 8;
    let value = 0, start = 0, stop = 0;
    at = behind;
    if (wire === 0) [value, at] = varint(body, at, end);
    else if (wire === 2) {
      const [length, from] = varint(body, at, end);
      [start, stop, at] = [from, from + length, from + length];
    } else if (wire === 1 || wire === 5) at += wire === 1 ? 8 : 4;
    else throw new Wrong("it is no ONNX graph");
    if (at > end || number === 0) throw new Wrong("it is no ONNX graph, or cut short");
    yield { number, value, start, stop };
  }
}

function varint(body, begin, end) {
  let value = 0;
  for (let at = begin, scale = 1; at < end && at < begin + 10; at++, scale *= 128) {
    value += (body[at] & 127) * scale;
    if (body[at] < 128) return [value, at + 1];
  }
  throw new Wrong("it is no ONNX graph, or cut short");
}

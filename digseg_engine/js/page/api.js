// The engine in this browser, with the promises of the server's `api.js`: one page, two engines. It runs in a worker, so that the page
// answers while it computes.

const worker = new Worker(new URL(`worker.js${location.search}`, import.meta.url), { type: "module" }); // ?backend=wasm
const waiting = new Map();
let number = 0, told = () => {};

worker.addEventListener("message", ({ data: { id, value, error, progress } }) => {
  if (progress) return told(progress);
  const { done, failed } = waiting.get(id);
  waiting.delete(id);
  if (error) failed(Object.assign(new Error(error.message), error));
  else done(value);
});
worker.addEventListener("error", ({ message }) => {
  const error = Object.assign(new Error(`The engine cannot start in this browser: ${message || "its worker does not load"}. Is the folder whole?`), { code: "failed", status: 500 });
  for (const { failed } of waiting.values()) failed(error);
  waiting.clear();
});

const ask = (what, ...given) => new Promise((done, failed) => {
  const id = number++;
  waiting.set(id, { done, failed });
  worker.postMessage({ id, what, given });
});

export const where = "They stay in this browser.";

// told: is given words on what loads.
export function watch(each) { told = each; }

export function useToken() { /* there is no server to ask for one */ }

export const models = () => ask("models");
export const encode = (file, name) => ask("encode", file, name);
export const segment = (encoding, prompts) => ask("segment", encoding, prompts);
export const picture = (encoding) => ask("picture", encoding);
export const forget = (encoding) => ask("forget", encoding).catch(() => {});

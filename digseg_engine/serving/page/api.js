// The server's HTTP, as promises. Every error is an Error with the server's own sentence, its code and status. The page without a
// server has another file in this one's place, with the same names (digseg_engine/js/page/api.js).

const STORED = "digseg-token";
let token = sessionStorage.getItem(STORED) ?? "";

// A token given behind # in the address is kept for this tab and taken out of the address.
const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  useToken(given);
  history.replaceState(null, "", location.pathname);
}

export const where = "They go to this server and nowhere else.";

// Told what loads; here nothing does.
export function watch() {}

export function useToken(text) {
  token = text;
  sessionStorage.setItem(STORED, text);
}

async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw Object.assign(new Error("The server does not answer. Is it still running?"), { code: "unreachable", status: 0 });
  }
  if (answer.ok) return answer;
  let told = { code: "failed", message: `The server answered ${answer.status}.` };
  try { told = (await answer.json()).error ?? told; } catch { /* no JSON: what stands above */ }
  throw Object.assign(new Error(told.message), { code: told.code, status: answer.status });
}

export const models = async () => (await ask("v1/models")).json();

export async function encode(file, name, model) {
  const form = new FormData();
  form.append("image", file, name);
  if (model) form.append("model", model);
  return (await ask("v1/encode", { method: "POST", body: form })).json();
}

export async function segment(encoding, prompts) {
  const body = JSON.stringify({ encoding, output: "rle", ...(prompts ? { prompts } : {}) });
  return (await ask("v1/segment", { method: "POST", body, headers: { "Content-Type": "application/json" } })).json();
}

export const picture = async (encoding) => (await ask(`v1/encodings/${encoding}/picture`)).blob();

export const forget = (encoding) => ask(`v1/encodings/${encoding}`, { method: "DELETE" }).catch(() => {});

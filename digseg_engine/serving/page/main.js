// The page: pictures come in, questions go out, answers are listed and drawn.

import * as api from "./api.js";
import { Picture } from "./pictures.js";
import * as save from "./save.js";
import { View } from "./view.js";

const at = (name) => document.getElementById(name);
const state = { loading: "", pictures: [], current: null, models: [], palette: [], model: null, limits: {} };
const view = new View(at("view"), { hovered, zoomed });

function zoomed(scale) {
  at("fit").textContent = `${Math.round(scale * 100)} %`;
  at("fit").setAttribute("aria-label", `${at("fit").textContent}, fit the picture`);
}

// ---- words

const percent = (area) => area >= 0.001 || area === 0 ? `${(100 * area).toFixed(1)} %` : area >= 0.0001 ? `${(100 * area).toFixed(2)} %` : "under 0.01 %";
const milliseconds = (seconds) => `${Math.max(1, Math.round(1000 * seconds))} ms`;

function figures(mask) {
  if (!mask.there) return `not there${mask.presence === null ? "" : ` · presence ${Math.round(100 * mask.presence)} %`}`;
  if (!mask.pixels) return "not found";
  const parts = [percent(mask.area)];
  if (mask.score !== null) parts.push(`score ${mask.score.toFixed(2)}`);
  if (mask.presence !== null) parts.push(`presence ${Math.round(100 * mask.presence)} %`);
  return parts.join(" · ");
}

function timing({ encoded, asked }) {
  const took = `Read in ${milliseconds(encoded.seconds.encode ?? 0)}${asked ? `, last question ${milliseconds(asked)}` : ""}`;
  return [took, `${encoded.width} × ${encoded.height}, worked at ${encoded.working_size} px`, ...encoded.notes].join("\n");
}

let fading = 0;
function complain(error) {
  if (error.status === 401) return at("token-dialog").showModal();
  at("toast").textContent = error.message;
  at("toast").hidden = false;
  clearTimeout(fading);
  fading = setTimeout(() => { at("toast").hidden = true; }, 8000);
}

const say = (words) => { at("said").textContent = words; };

// ---- pictures

const isPicture = (file) => file.type.startsWith("image/") || /\.(png|jpe?g|webp|tiff?|bmp|avif|hei[cf])$/i.test(file.name);

async function addFiles(files, ideas = []) {
  const good = [...files].filter(isPicture);
  if (files.length && !good.length) complain(new Error("That is no picture. PNG, JPEG, WebP, TIFF, BMP, AVIF and HEIF are read."));
  for (const file of good) {
    const picture = new Picture(file, file.name || "pasted.png");
    picture.ideas = ideas;
    state.pictures.push(picture);
    await show(picture);
    await read(picture);
  }
}

async function bitmapOf(blob) {
  try { return await createImageBitmap(blob, { imageOrientation: "from-image" }); } catch { return null; }
}

// Show what the browser can read at once, and let the server encode; what the browser cannot read, the server sends as PNG.
async function read(picture) {
  working(picture, 1);
  try {
    picture.bitmap = await bitmapOf(picture.file);
    render();
    view.show(state.current);
    picture.encoded = await api.encode(picture.file, picture.name, state.model);
    const matches = picture.bitmap && picture.bitmap.width === picture.encoded.width && picture.bitmap.height === picture.encoded.height;
    if (!matches) picture.bitmap = await bitmapOf(await api.picture(picture.encoded.id));
    say(`${picture.name} is ready. Type what to find.`);
  } catch (error) {
    complain(error);
    if (!picture.bitmap || error.status === 413 || error.status === 422) await remove(picture);
  } finally {
    working(picture, -1);
  }
  if (state.current === picture) view.show(picture);
  render();
  if (picture.encoded && state.current === picture && matchMedia("(hover: hover)").matches) at("prompt").focus();
  const names = vocabulary();
  if (picture.encoded && names.length && names.length <= state.limits.prompts) await question(null, picture);
}

async function show(picture) {
  state.current = picture;
  view.near = null;
  view.show(picture);
  render();
}

async function remove(picture) {
  const place = state.pictures.indexOf(picture);
  if (place < 0) return;
  state.pictures.splice(place, 1);
  if (picture.encoded) api.forget(picture.encoded.id);
  if (state.current === picture) await show(state.pictures[Math.min(place, state.pictures.length - 1)] ?? null);
  render();
}

function working(picture, change) {
  picture.waiting += change;
  render();
}

// ---- questions

const vocabulary = () => state.models.find((model) => model.name === state.model)?.vocabulary ?? [];

// Ask about a picture, which is encoded again where the server has let go of it. prompts null: all names of the vocabulary.
async function question(prompts, picture = state.current) {
  if (!picture?.encoded) return;
  const known = prompts?.length === 1 ? picture.find(prompts[0]) : null;
  if (known) {
    if (!known.shown) toggle(known);
    return say(`${known.prompt}: ${figures(known.mask)}`);
  }
  working(picture, 1);
  const began = performance.now();
  try {
    let record;
    try {
      record = await api.segment(picture.encoded.id, prompts);
    } catch (error) {
      if (error.code !== "unknown_encoding") throw error;
      picture.encoded = await api.encode(picture.file, picture.name, state.model);
      record = await api.segment(picture.encoded.id, prompts);
    }
    picture.add(record, state.palette);
    picture.asked = (performance.now() - began) / 1000;
    say(record.masks.map((mask) => `${mask.prompt}: ${figures(mask)}`).join("; "));
  } catch (error) {
    complain(error);
  } finally {
    working(picture, -1);
  }
  view.draw();
}

function toggle(entry) {
  state.current.remember();
  const now = state.current.find(entry.prompt);
  now.shown = !now.shown;
  render();
}

function takeAway(entry) {
  state.current.remember();
  state.current.entries = state.current.entries.filter((each) => each.prompt !== entry.prompt);
  view.near = null;
  render();
  at("prompt").focus();
}

function undo() {
  state.current?.undo();
  view.near = null;
  render();
}

// ---- drawing the panel

const ICONS = { save: "M10 4v8m0 0 3-3m-3 3-3-3M5 15h10", away: "M6 6l8 8M14 6l-8 8" };

function made(kind, properties = {}, ...children) {
  const { style, data, ...rest } = properties, element = Object.assign(document.createElement(kind), rest);
  for (const [name, value] of Object.entries(style ?? {})) element.style.setProperty(name, value);
  for (const [name, value] of Object.entries(data ?? {})) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function icon(name) {
  const space = "http://www.w3.org/2000/svg", svg = document.createElementNS(space, "svg"), path = document.createElementNS(space, "path");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

const css = (colour, alpha = 1) => `rgb(${colour.join(" ")} / ${alpha})`;

function line(entry) {
  const colour = entry.colour, found = Boolean(colour);
  const square = made("i", { style: colour ? { background: css(colour, 0.75), "border-color": css(colour) } : {} });
  const swatch = made("button", {
    type: "button", className: "swatch", disabled: !found, onclick: () => toggle(entry), title: entry.shown ? "Hide" : "Show",
    data: { "aria-pressed": String(entry.shown && found), "aria-label": `Show ${entry.prompt}` },
  }, square);
  const words = made("span", {}, made("span", { className: "name", textContent: entry.prompt }), made("span", { className: "figure", textContent: figures(entry.mask) }));
  const acts = made("span", { className: "acts" });
  if (found) acts.append(made("button", { type: "button", title: "Save this mask", onclick: () => save.mask(state.current, entry), data: { "aria-label": `Save the mask of ${entry.prompt}` } }, icon("save")));
  acts.append(made("button", { type: "button", title: "Take away", onclick: () => takeAway(entry), data: { "aria-label": `Take away ${entry.prompt}` } }, icon("away")));
  const item = made("li", { className: [found ? "" : "absent", entry.shown ? "" : "hidden-mask"].join(" ").trim(), data: { "data-prompt": entry.prompt } }, swatch, words, acts);
  item.addEventListener("pointerenter", () => bringOut(found && entry.shown ? entry : null));
  item.addEventListener("pointerleave", () => bringOut(null));
  return item;
}

function bringOut(entry) {
  view.near = entry;
  view.draw();
}

let listed = "";
function legend(picture) {
  const now = JSON.stringify(picture?.entries.map((entry) => [entry.prompt, entry.shown, entry.colour]) ?? null) + state.pictures.indexOf(picture);
  if (now === listed) return;
  listed = now;
  const focused = document.activeElement?.getAttribute("aria-label"), inside = at("legend").contains(document.activeElement);
  const before = new Set([...at("legend").children].map((item) => item.dataset.prompt));
  at("legend").replaceChildren(...(picture?.entries ?? []).map(line));
  for (const item of at("legend").children) item.classList.toggle("fresh", !before.has(item.dataset.prompt));
  if (inside) at("legend").querySelector(`[aria-label="${CSS.escape(focused)}"]`)?.focus();
}

function strip() {
  at("strip").hidden = state.pictures.length < 2;
  if (at("strip").hidden) return at("strip").replaceChildren();
  at("strip").replaceChildren(...state.pictures.map((picture) => {
    const small = made("canvas", { width: 128, height: 128 });
    if (picture.bitmap) {
      const { width, height } = picture.bitmap, side = Math.min(width, height);
      small.getContext("2d").drawImage(picture.bitmap, (width - side) / 2, (height - side) / 2, side, side, 0, 0, 128, 128);
    }
    return made("div", {},
      made("button", { type: "button", className: "thumb", title: picture.name, onclick: () => show(picture), data: { "aria-label": picture.name, "aria-current": String(picture === state.current) } }, small),
      made("button", { type: "button", className: "away", textContent: "×", onclick: () => remove(picture), data: { "aria-label": `Close ${picture.name}` } }));
  }));
}

function render() {
  const picture = state.current, ready = Boolean(picture?.encoded), names = vocabulary();
  at("welcome").hidden = Boolean(picture);
  at("tools").hidden = !picture?.bitmap;
  at("working").hidden = !picture?.waiting;
  at("working").lastElementChild.textContent = ready ? "Looking" : state.loading || "Reading the picture";
  at("prompt").disabled = at("find").disabled = !ready;
  at("prompt").placeholder = names.length ? `One of ${names.length} names` : "What should be found?";
  at("undo").disabled = !picture?.past.length;
  at("save").disabled = !picture?.entries.length;
  at("nothing").hidden = Boolean(picture?.entries.length);
  at("timing").textContent = ready ? timing(picture) : "";
  const shown = picture?.visible.map((entry) => entry.prompt) ?? [];
  at("view").setAttribute("aria-label", picture ? `${picture.name}${shown.length ? `, masks: ${shown.join(", ")}` : ""}` : "No picture yet");
  const ideas = ready ? (names.length ? names : picture.ideas).filter((idea) => !picture.find(idea)) : [];
  at("ideas").replaceChildren(...ideas.map((idea) => made("button", { type: "button", textContent: idea, onclick: () => question([idea]) })));
  legend(picture);
  strip();
  view.draw();
}

function hovered(entries, x, y) {
  const near = entries[0]?.prompt;
  for (const item of at("legend").children) item.classList.toggle("near", item.dataset.prompt === near);
  at("tip").hidden = !entries.length;
  at("tip").replaceChildren(...entries.map((entry) => made("p", {}, made("i", { style: { background: css(entry.colour) } }), made("span", { textContent: `${entry.prompt}${entry.mask.score === null ? "" : ` ${entry.mask.score.toFixed(2)}`}` }))));
  const room = at("stage").clientWidth - at("tip").offsetWidth - 8;
  at("tip").style.left = `${Math.max(8, Math.min(x + 16, room))}px`;
  at("tip").style.top = `${Math.max(8, y - 12 - at("tip").offsetHeight)}px`;
}

// ---- what the visitor does

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const words = at("prompt").value.trim();
  if (!words) return;
  at("prompt").value = "";
  question([words]);
});
for (const name of ["open", "choose"]) at(name).addEventListener("click", () => at("files").click());
at("files").addEventListener("change", () => { addFiles(at("files").files); at("files").value = ""; });
at("opacity").addEventListener("input", () => { view.opacity = at("opacity").value / 100; view.draw(); });
at("larger").addEventListener("click", () => view.larger());
at("smaller").addEventListener("click", () => view.smaller());
at("fit").addEventListener("click", () => view.fit());
at("undo").addEventListener("click", undo);
at("model").addEventListener("change", async () => {
  state.model = at("model").value;
  for (const picture of state.pictures) {
    if (picture.encoded) api.forget(picture.encoded.id);
    Object.assign(picture, { encoded: null, entries: [], past: [], record: null });
    await read(picture);
  }
});

const menu = (open) => { at("kinds").hidden = !open; at("save").setAttribute("aria-expanded", String(open)); };
at("save").addEventListener("click", () => { menu(at("kinds").hidden); at("kinds").querySelector("button").focus(); });
at("kinds").addEventListener("click", (event) => {
  const kind = event.target.closest("button")?.dataset.kind;
  menu(false);
  at("save").focus();
  if (kind === "png") save.png(state.current, view.opacity);
  if (kind === "json") save.json(state.current);
  if (kind === "coco") save.coco(state.pictures.filter((picture) => picture.encoded));
});
addEventListener("pointerdown", (event) => { if (!event.target.closest(".menu")) menu(false); });

addEventListener("keydown", (event) => {
  const typing = event.target.matches("input[type=text], input[type=password]");
  if (event.key === "Escape") { menu(false); at("toast").hidden = true; }
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z" && !(typing && event.target.value)) { event.preventDefault(); undo(); }
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const does = { "+": () => view.larger(), "=": () => view.larger(), "-": () => view.smaller(), 0: () => view.fit(), "/": () => at("prompt").focus() }[event.key];
  if (does) { event.preventDefault(); does(); }
});

const carries = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
addEventListener("dragover", (event) => { if (carries(event)) { event.preventDefault(); at("drop").hidden = false; } });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) at("drop").hidden = true; });
addEventListener("drop", (event) => {
  at("drop").hidden = true;
  if (!carries(event)) return;
  event.preventDefault();
  addFiles(event.dataTransfer.files);
});
addEventListener("paste", (event) => {
  if (event.clipboardData?.files.length) { event.preventDefault(); addFiles(event.clipboardData.files); }
});
at("token-form").addEventListener("submit", () => { api.useToken(at("token").value); begin(); });

// ---- start

async function samples() {
  const listed = await (await fetch("samples.json")).json();
  at("samples").replaceChildren(...listed.map(({ file, name, ideas }) => made("button", {
    type: "button", className: "sample",
    onclick: async () => addFiles([new File([await (await fetch(file)).blob()], file.split("/").pop(), { type: "image/jpeg" })], ideas),
  }, made("img", { src: file, alt: "" }), name)));
}

async function begin() {
  try {
    Object.assign(state, await api.models());
    state.loading = "";
    state.model = state.models[0].name;
    at("one-model").textContent = state.model;
    at("model").replaceChildren(...state.models.map(({ name }) => made("option", { textContent: name, value: name })));
    at("many-models").hidden = state.models.length < 2;
    at("one-model").hidden = state.models.length > 1;
    for (const picture of state.pictures.filter((each) => !each.encoded)) await read(picture);
  } catch (error) {
    state.loading = at("one-model").textContent = "";
    complain(error);
  }
  render();
}

at("where").textContent = api.where;
api.watch((words) => {
  state.loading = at("one-model").textContent = words;
  render();
});
samples();
begin();
render();

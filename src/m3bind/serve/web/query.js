// The query: texts and files as chips with a sign and a weight.

import { call, pictureOf, place } from "./api.js";
import { $, button, fill, h, icon, plain, say } from "./dom.js";
import * as store from "./store.js";
import { upload } from "./uploads.js";

const AVOIDED = -0.5; // default weight of an avoided part
const STEPS = [0.25, 0.5, 0.75, 1, 1.5, 2, 3];

let about;

/** Set up the form of the query. */
export function startQuery(known) {
  about = known;
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    addTyped(1);
  });
  $("q").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.shiftKey) {
      event.preventDefault();
      addTyped(AVOIDED);
    } else if (event.key === "Backspace" && !$("q").value && store.get().parts.length)
      remove(store.get().parts.length - 1);
  });
  $("q").addEventListener("input", () => $("avoid").toggleAttribute("disabled", !$("q").value.trim()));
  $("avoid").addEventListener("click", () => addTyped(AVOIDED));
  $("start-over").addEventListener("click", () => {
    store.clear();
    $("q").focus();
  });
  $("pick").addEventListener("click", () => $("files").click());
  $("files").addEventListener("change", () => {
    takeFiles([...$("files").files]);
    $("files").value = "";
  });
  if (about.limits?.text_chars) $("q").maxLength = about.limits.text_chars;
  store.watch(draw);
  draw(store.get());
}

/** Send files; each readable one becomes a part. */
export function takeFiles(files) {
  const done = ({ id, modality }) => addPart({ kind: "upload", value: id, weight: 1, modality });
  upload(files, { list: $("sending"), about, done });
}

/** Add a part to the query, and search. */
export function addPart(part) {
  const parts = store.get().parts.filter((old) => old.kind !== part.kind || old.value !== part.value);
  const most = about.limits?.parts ?? Infinity;
  if (parts.length >= most) {
    complain(`A query has at most ${most} parts; remove one first.`);
    return;
  }
  complain("");
  store.set({ parts: [...parts, part], open: null, tab: "search" });
}

/** Search for this text alone. */
export function askFor(text) {
  store.set({ parts: [{ kind: "text", value: text, weight: 1 }], open: null, tab: "search" });
}

function addTyped(weight) {
  const text = $("q").value.trim();
  if (!text) {
    if (!store.get().parts.length) complain("Type a text, or add a file.");
    return;
  }
  if (weight < 0 && !store.get().parts.length) {
    complain("Add a part to search for first, then one to avoid.");
    return;
  }
  $("q").value = "";
  $("avoid").setAttribute("disabled", "");
  addPart({ kind: "text", value: text, weight });
}

function complain(text) {
  $("ask-error").textContent = text;
}

function change(index, part) {
  const parts = [...store.get().parts];
  parts[index] = { ...parts[index], ...part };
  store.set({ parts });
}

function remove(index) {
  const parts = store.get().parts.filter((_, at) => at !== index);
  store.set({ parts });
  const left = $("parts").querySelectorAll(".chip");
  (left[Math.min(index, left.length - 1)]?.querySelector(".chip-close") ?? $("q")).focus();
  say("Removed");
}

/** Items from an address are known by their id only: fetch their facts. */
async function complete(parts) {
  const bare = parts.filter((part) => part.kind === "item" && !part.modality);
  const found = await Promise.allSettled(bare.map((part) => call(place(part))));
  const known = new Map(bare.map((part, i) => [part.value, found[i].value]));
  if (store.get().parts !== parts) return;
  const named = parts.map((part) => {
    const item = part.kind === "item" && known.get(part.value);
    return item ? { ...part, modality: item.modality, label: item.fields?.label } : part;
  });
  store.set({ parts: named }, { quiet: true });
}

function draw({ parts }, before) {
  if (before && before.parts === parts) return;
  if (parts.some((part) => part.kind === "item" && part.modality === undefined)) complete(parts);
  const focused = document.activeElement?.closest("#parts .chip") ? document.activeElement.dataset.key : null;
  fill($("parts"), parts.map(chip));
  if (focused)
    $("parts")
      .querySelector(`[data-key="${CSS.escape(focused)}"]`)
      ?.focus();
  $("parts").hidden = !parts.length;
  $("ask-more").hidden = $("avoid").hidden = !parts.length;
  $("q").placeholder = parts.length ? "Add more text …" : "Describe a finding, or drop a file";
  $("submit-word").textContent = parts.length ? "Add" : "Search";
  $("unshared").hidden = !parts.some((part) => part.kind === "upload");
}

function chip(part, index) {
  const avoided = part.weight < 0;
  const name = nameOf(part);
  const size = Math.abs(part.weight);
  const sizes = STEPS.includes(size) ? STEPS : [...STEPS, size].sort((a, b) => a - b);
  const sign = h(
    "button",
    {
      type: "button",
      class: "sign",
      "aria-label": avoided ? `Avoided: ${name}. Search for it instead` : `Searched for: ${name}. Avoid it instead`,
      title: avoided ? "Avoided; press to search for it" : "Searched for; press to avoid it",
      data: { key: `sign${index}` },
      on: { click: () => change(index, { weight: -part.weight }) },
    },
    icon(avoided ? "minus" : "plus"),
  );
  const weight = h(
    "select",
    {
      "aria-label": `Weight of ${name}`,
      data: { key: `weight${index}` },
      on: { change: () => change(index, { weight: Math.sign(part.weight) * Number(weight.value) }) },
    },
    sizes.map((value) => h("option", { value: String(value), selected: value === size }, `× ${value}`)),
  );
  const close = button({
    label: `Remove ${name}`,
    image: "close",
    kind: "chip-close",
    press: () => remove(index),
    "data-key": `close${index}`,
  });
  return h("li", { class: `chip ${avoided ? "avoided" : ""}` }, sign, body(part, name), weight, close);
}

function body(part, name) {
  if (part.kind === "text") return h("span", { class: "chip-name" }, `\u201c${part.value}\u201d`);
  const thumb = h("img", {
    src: pictureOf(part, "thumbnail", { size: 96 }),
    alt: "",
    on: { error: () => thumb.remove() },
  });
  const open = () => store.set({ open: { kind: part.kind, value: part.value } });
  return h(
    "button",
    { type: "button", class: "chip-name look", title: "Open it", on: { click: open } },
    thumb,
    h("span", {}, name),
  );
}

/** The name of a part. */
export function nameOf(part) {
  if (part.kind === "text") return part.value;
  const title = about.modalities.find((kind) => kind.name === part.modality)?.title;
  const what = part.label ? `${title}, ${plain(part.label)}` : title;
  return part.kind === "upload" ? `${title ?? "A file"} (your file)` : (what ?? "an item");
}

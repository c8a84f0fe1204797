// One item or upload in detail: its image, volume or ECG, its scores, why it was found, its fields.

import { call, place } from "./api.js";
import { $, bar, button, dot, fill, h, plain, signed, top } from "./dom.js";
import { addPart } from "./query.js";
import { partOf } from "./results.js";
import { found, onFound } from "./search.js";
import { signal } from "./signal.js";
import { stage } from "./stage.js";
import { failure, waiting } from "./states.js";
import * as store from "./store.js";
import { notesOf } from "./uploads.js";
import { why } from "./why.js";

let about;
let drawn = "";
let opener = null;

/** Bind the dialog to the state. */
export function startDetail(known) {
  about = known;
  const dialog = $("detail");
  dialog.addEventListener("cancel", (event) => {
    event.preventDefault();
    close();
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) close();
  });
  dialog.addEventListener("keydown", (event) => {
    const typing =
      /^(input|select|textarea)$/i.test(event.target.tagName) &&
      event.target.type !== "range" &&
      event.target.type !== "radio";
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "n") turn(1);
    if (event.key === "p") turn(-1);
  });
  onFound(() => dialog.open && rank());
  store.watch(draw);
  draw(store.get());
}

const close = () => store.set({ open: null });

function draw({ open, parts }) {
  const dialog = $("detail");
  const key = JSON.stringify(open);
  if (!open) {
    drawn = "";
    if (!dialog.open) return;
    dialog.close();
    dialog.replaceChildren();
    const hit = opener && document.querySelector(`.card[data-id="${CSS.escape(opener)}"] .card-open`);
    hit?.focus();
    return;
  }
  opener = open.value;
  if (key === drawn) return;
  drawn = key;
  if (!dialog.open) dialog.showModal();
  load(open, parts, key);
}

async function load(open, parts, key) {
  const dialog = $("detail");
  const held = document.activeElement?.dataset.turn; // the button that led here
  fill(dialog, head("Reading …"), h("div", { class: "detail-wait" }, waiting("Fetching the item …")));
  dialog.querySelector(".detail-close").focus();
  try {
    const item = await call(place(open));
    if (key === drawn) fill(dialog, ...content(open, item, parts));
  } catch (error) {
    if (key !== drawn) return;
    const gone = error.status === 404 && open.kind === "item";
    const message = gone ? "The index has no such item; it may have been removed." : error.message;
    const again = () => load(open, parts, key);
    fill(dialog, head("Not available"), failure({ code: error.code, message }, again));
  }
  if (key !== drawn) return;
  rank();
  (dialog.querySelector(`[data-turn="${held}"]:enabled`) ?? dialog.querySelector(".detail-close")).focus();
}

function head(title, kind = null) {
  return h(
    "header",
    { class: "detail-head" },
    h("h2", { id: "detail-title" }, kind ? dot(kind) : null, title),
    h("div", { class: "tools", id: "detail-turn" }),
    button({ label: "Close", image: "close", kind: "detail-close", press: close }),
  );
}

/** The rank of the item among the hits, which may arrive before or after it is shown. */
function rank() {
  const hits = found();
  const at = hits.findIndex((hit) => hit.id === store.get().open?.value);
  const next = (by, label, image) =>
    button({ label, image, press: () => turn(by), disabled: !hits[at + by], "data-turn": by });
  fill($("detail-turn"), at < 0 ? [] : [next(-1, "Previous hit (p)", "left"), next(1, "Next hit (n)", "right")]);
  const box = $("detail-scores");
  if (box) fill(box, at < 0 ? [] : scores(hits[at]));
}

function turn(by) {
  const hits = found();
  const at = hits.findIndex((hit) => hit.id === store.get().open?.value);
  const next = hits[at + by];
  if (at >= 0 && next) store.set({ open: { kind: "item", value: next.id } }, { quiet: true });
}

const kindOf = (name) => about.modalities.find((kind) => kind.name === name) ?? { name, title: name, color: "#888888" };

function content(open, item, parts) {
  const kind = kindOf(item.modality);
  const label = plain(item.fields?.label ?? "");
  const title = open.kind === "upload" ? `${kind.title} (your file)` : `${kind.title}${label ? `: ${label}` : ""}`;
  const others = parts.filter((part) => part.value !== open.value);
  return [
    head(title, kind),
    h(
      "div",
      { class: "detail-body" },
      h("div", { class: "detail-view" }, look(open, item, kind, label)),
      h(
        "div",
        { class: "detail-info" },
        item.fields?.incomplete
          ? h("p", { class: "part-warning", role: "note" }, `This item may be incomplete: ${item.fields.incomplete}.`)
          : null,
        item.fields?.unlike
          ? h("p", { class: "part-warning", role: "note" }, `Unlike the training data: ${item.fields.unlike}.`)
          : null,
        h("div", { id: "detail-scores" }),
        actions(open, item),
        open.kind === "upload" ? remarks(notesOf(open.value)) : null,
        part("Why", why(open, others)),
        Object.keys(item.fields ?? {}).length ? part("Fields", fields(open, item)) : null,
      ),
    ),
  ];
}

const part = (title, body) => h("section", {}, h("h3", {}, title), body);

function look(open, item, kind, label) {
  const title = `${kind.title}${label ? `, ${label}` : ""}`;
  if (!item.picture)
    return h(
      "div",
      { class: "viewer nothing" },
      h("p", {}, "No image: this index stores no files, or the service was started without access to them."),
    );
  if (item.kind === "signal") return signal(open, { title });
  return stage(open, { title, slices: item.kind === "volume" ? item.slices : null });
}

function scores(hit) {
  const { title } = kindOf(hit.modality);
  return part(
    `Hit ${hit.rank}`,
    h(
      "div",
      { class: "scores" },
      h("p", { class: "big" }, top(hit.percentile)),
      bar(hit.percentile),
      h("p", {}, `of all items of ${title}`),
      h(
        "dl",
        { class: "pairs" },
        h("dt", {}, "z"),
        h("dd", {}, `${signed(hit.calibrated)} standard deviations above what is usual`),
        h("dt", {}, "Cosine"),
        h("dd", {}, signed(hit.score, 3)),
      ),
    ),
  );
}

function actions(open, item) {
  const as = (weight) =>
    open.kind === "item" ? partOf({ id: open.value, ...item }, weight) : { ...open, weight, modality: item.modality };
  const zero = () =>
    store.set({
      open: null,
      tab: "zero-shot",
      zero: { ...store.get().zero, source: { ...open, modality: item.modality } },
    });
  return h(
    "div",
    { class: "actions" },
    button({ text: "More like this", image: "plus", press: () => addPart(as(1)) }),
    button({ text: "Less like this", image: "minus", press: () => addPart(as(-0.5)) }),
    button({ text: "Classify (zero-shot)", image: "scale", press: zero }),
  );
}

function remarks({ warnings, steps }) {
  if (!warnings.length && !steps.length) return null;
  return part(
    "How it was read",
    h(
      "ul",
      { class: "remarks" },
      warnings.map((text) => h("li", { class: "warning" }, text)),
      steps.map((text) => h("li", {}, text)),
    ),
  );
}

function fields(open, item) {
  const rows = Object.entries({ ...item.fields, id: open.value }).map(([name, value]) => [
    h("dt", {}, plain(name)),
    h("dd", {}, name === "label" ? plain(value) : String(value)),
  ]);
  return h("dl", { class: "pairs" }, rows);
}

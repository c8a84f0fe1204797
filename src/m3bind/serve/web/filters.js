// Filters of items, and the order of hits.

import { $, button, dot, fill, h, plain } from "./dom.js";
import * as store from "./store.js";

const AMOUNTS = [6, 12, 24, 48, 100];
const wide = matchMedia("(min-width: 900px)");

let about;

/** Set up the filters for the columns of this index. */
export function startFilters(known) {
  about = known;
  for (const name of ["label", "patient"]) $(`${name}-field`).hidden = !about.columns.includes(name);
  $("dates-field").hidden = !about.columns.includes("date");
  const labels = [
    ...new Set(
      Object.values(about.labels ?? {})
        .flat()
        .flatMap((label) => label.split("|")),
    ),
  ].sort();
  fill(
    $("labels"),
    labels.map((label) => h("option", { value: plain(label), data: { label } })),
  );
  const original = new Map(labels.map((label) => [plain(label), label]));
  taker(
    "label",
    (text) => original.get(text) ?? text,
    (text) => original.has(text),
  );
  taker("patient", (text) => text);
  for (const name of ["since", "until"]) {
    $(name).addEventListener("change", () => where({ [name]: $(name).value }));
  }
  for (const at of [0, 1]) {
    $(`along-${at}`).addEventListener("change", () => {
      const along = [...store.get().along];
      along[at] = $(`along-${at}`).value.trim();
      store.set({ along });
    });
  }
  $("k").addEventListener("change", () => store.set({ k: Number($("k").value) }));
  $("rank").addEventListener("change", () => store.set({ rank: $("rank").value }));
  $("grouped").addEventListener("change", () => store.set({ grouped: $("grouped").checked }));
  $("no-filters").addEventListener("click", () =>
    where({ modality: [], label: [], patient: [], since: "", until: "" }),
  );
  const fold = () => {
    $("filters").open = wide.matches;
  };
  wide.addEventListener("change", fold);
  fold();
  store.watch((state) => draw(state));
  draw(store.get());
}

/** Number of conditions. */
export const conditions = ({ modality, label, patient, since, until }) =>
  modality.length + label.length + patient.length + Boolean(since) + Boolean(until);

/** The conditions in the form of a request. */
export const asWhere = (where) => Object.fromEntries(Object.entries(where).filter(([, value]) => value.length));

function where(change) {
  store.set({ where: { ...store.get().where, ...change } });
}

function toggle(name, value) {
  const now = store.get().where[name];
  where({ [name]: now.includes(value) ? now.filter((other) => other !== value) : [...now, value] });
}

/** An input whose values are listed below it; a known value is added while it is typed. */
function taker(name, clean, known = () => false) {
  const input = $(name);
  const take = () => {
    const value = clean(input.value.trim());
    input.value = "";
    if (value && !store.get().where[name].includes(value)) toggle(name, value);
  };
  input.addEventListener("change", take);
  input.addEventListener("input", (event) => {
    if (event.inputType === "insertReplacementText" && known(input.value)) take();
  });
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    take();
  });
}

function draw(state) {
  const { where: now } = state;
  const focused = document.activeElement?.dataset?.modality;
  fill(
    $("targets"),
    about.modalities.filter((kind) => kind.items).map((kind) => target(kind, now.modality)),
  );
  if (focused)
    $("targets")
      .querySelector(`[data-modality="${CSS.escape(focused)}"]`)
      ?.focus();
  for (const name of ["label", "patient"]) {
    fill(
      $(`${name}-values`),
      now[name].map((value) =>
        h(
          "li",
          {},
          h("span", {}, plain(value)),
          button({
            label: `Remove the filter ${plain(value)}`,
            image: "close",
            press: () => {
              toggle(name, value);
              $(name).focus();
            },
          }),
        ),
      ),
    );
  }
  for (const name of ["since", "until"]) $(name).value = now[name];
  const most = about.limits?.k ?? Infinity;
  const amounts = [...new Set([...AMOUNTS, state.k])].filter((n) => n <= most).sort((a, b) => a - b);
  fill(
    $("k"),
    amounts.map((n) => h("option", { value: String(n), selected: n === state.k }, String(n))),
  );
  for (const at of [0, 1]) $(`along-${at}`).value = state.along[at];
  $("rank").value = state.rank;
  $("grouped").checked = state.grouped;
  const n = conditions(now);
  $("no-filters").hidden = !n;
  $("filter-count").textContent = n ? ` (${n})` : "";
}

function target(kind, chosen) {
  return h(
    "button",
    {
      type: "button",
      class: "target",
      "aria-pressed": String(chosen.includes(kind.name)),
      data: { modality: kind.name },
      on: { click: () => toggle("modality", kind.name) },
    },
    dot(kind),
    h("span", { class: "grow" }, kind.title),
    h("span", { class: "count" }, kind.items.toLocaleString("en")),
  );
}

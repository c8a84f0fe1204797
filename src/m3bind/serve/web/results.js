// Hits as cards with images; arrow keys move among them.

import { pictureOf } from "./api.js";
import { bar, button, dot, h, plain, signed, top } from "./dom.js";
import { addPart } from "./query.js";
import * as store from "./store.js";

/** The part of a query that stands for a hit. */
export const partOf = (hit, weight) => ({
  kind: "item",
  value: hit.id,
  weight,
  modality: hit.modality,
  label: hit.fields?.label,
});

/** Relevance below which a modality has little to say to a query. */
export const SILENT = 0.1;

/** A list of hits, or groups of them by modality. */
export function cards(hits, about, grouped) {
  const titled = (name) => about.modalities.find((kind) => kind.name === name) ?? { title: name, color: "#888" };
  const groups = new Map();
  for (const hit of hits) {
    const key = grouped ? hit.modality : "";
    groups.set(key, [...(groups.get(key) ?? []), hit]);
  }
  const lists = [...groups].map(([name, members]) => {
    const kind = titled(name);
    const silent = grouped && members[0].relevance < SILENT;
    const heading = grouped
      ? h(
          "h3",
          { class: "group" },
          dot(kind),
          kind.title,
          h("span", { class: "count" }, String(members.length)),
          silent ? h("span", { class: "silence" }, "little to say to this query") : null,
        )
      : null;
    return h(
      "section",
      { class: silent ? "silent" : "" },
      heading,
      h(
        "ol",
        { class: "cards" },
        members.map((hit) => card(hit, titled(hit.modality))),
      ),
    );
  });
  const host = h("div", { class: "found" }, lists);
  host.addEventListener("keydown", move);
  host.addEventListener("focusin", (event) => current(host, event.target.closest(".card")));
  current(host, host.querySelector(".card"));
  return host;
}

function card(hit, kind) {
  const label = plain(hit.fields?.label ?? "");
  const part = hit.fields?.incomplete ?? "";
  const unlike = hit.fields?.unlike ?? "";
  const name =
    `Hit ${hit.rank}: ${kind.title}${label ? `, ${label}` : ""}${part ? ", may be incomplete" : ""}${unlike ? ", unusual" : ""}. ` +
    `Among the ${top(hit.percentile)} of its modality`;
  const open = () => store.set({ open: { kind: "item", value: hit.id } });
  return h(
    "li",
    { class: "card", data: { id: hit.id } },
    h(
      "button",
      { type: "button", class: "card-open", "aria-label": name, on: { click: open } },
      shot(hit, kind),
      h("span", { class: "card-kind" }, h("span", { class: "rank" }, String(hit.rank)), dot(kind), kind.title),
      h("span", { class: "card-label" }, label || "\u00a0"),
      part ? h("span", { class: "card-part", title: part }, "May be incomplete") : null,
      unlike ? h("span", { class: "card-part", title: unlike }, "Unusual") : null,
      h(
        "span",
        { class: "card-score" },
        bar(hit.percentile),
        h(
          "span",
          { class: "card-numbers" },
          h("strong", { title: "rank within its modality" }, top(hit.percentile)),
          h("span", { title: "standard deviations above what is usual in its modality" }, `z ${signed(hit.calibrated)}`),
        ),
      ),
    ),
    h(
      "div",
      { class: "card-tools" },
      button({
        text: "More like this",
        image: "plus",
        press: () => addPart(partOf(hit, 1)),
        "aria-label": `More like hit ${hit.rank}`,
      }),
      button({
        text: "Less",
        image: "minus",
        press: () => addPart(partOf(hit, -0.5)),
        "aria-label": `Less like hit ${hit.rank}`,
      }),
    ),
  );
}

/** The image of an item, or a text in its place. */
export function shot(hit, kind, size = 320) {
  const missing = () => h("span", { class: "shot missing" }, "No image stored");
  if (!hit.picture) return missing();
  const image = h("img", {
    src: pictureOf({ kind: "item", value: hit.id }, "thumbnail", { size }),
    alt: "",
    loading: "lazy",
    decoding: "async",
  });
  const box = h("span", { class: `shot ${kind.name ?? ""}` }, image);
  image.addEventListener("load", () => box.classList.add("drawn"));
  image.addEventListener("error", () => box.replaceWith(missing()));
  return box;
}

function current(host, chosen) {
  if (!chosen) return;
  for (const other of host.querySelectorAll(".card")) {
    for (const press of other.querySelectorAll("button")) press.tabIndex = other === chosen ? 0 : -1;
  }
}

function move(event) {
  const all = [...event.currentTarget.querySelectorAll(".card")];
  const at = all.indexOf(event.target.closest(".card"));
  if (at < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
  const next =
    { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key] ?? vertical(all, at, event.key);
  if (next === null) return;
  event.preventDefault();
  if (at === 0 && event.key === "ArrowUp") return;
  all[Math.max(0, Math.min(all.length - 1, next))].querySelector(".card-open").focus();
}

/** The nearest card of the line above or below. */
function vertical(all, at, key) {
  if (key !== "ArrowDown" && key !== "ArrowUp") return null;
  const boxes = all.map((item) => item.getBoundingClientRect());
  const down = key === "ArrowDown";
  const beyond = boxes
    .map((box, i) => ({ i, top: box.top, away: Math.abs(box.left - boxes[at].left) }))
    .filter(({ top }) => (down ? top > boxes[at].top + 4 : top < boxes[at].top - 4));
  if (!beyond.length) return at;
  const line = down ? Math.min(...beyond.map(({ top }) => top)) : Math.max(...beyond.map(({ top }) => top));
  return beyond.filter(({ top }) => Math.abs(top - line) < 4).sort((a, b) => a.away - b.away)[0].i;
}

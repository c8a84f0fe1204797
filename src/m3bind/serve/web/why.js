// Why a hit was found: the phrases nearest to the query beside those nearest to the item.

import { call, place } from "./api.js";
import { bar, fill, h, percent } from "./dom.js";
import { smallFailure, waiting } from "./states.js";
import { asked } from "./store.js";

const PHRASES = 6;

/** Two lists side by side; without a query, the item's alone. */
export function why(source, parts) {
  const host = h("div", { class: "why" });
  const load = async () => {
    fill(host, waiting("Searching for the nearest phrases …"));
    try {
      const [own, other] = await Promise.all([
        call(place(source, "texts", { k: PHRASES })),
        parts.length ? call("api/texts", { json: { parts: asked(parts), k: PHRASES } }) : null,
      ]);
      fill(host, ...lists(own.texts, other?.texts));
    } catch (error) {
      fill(host, smallFailure(error, load));
    }
  };
  load();
  return host;
}

function lists(own, other) {
  if (!own.length) return [h("p", { class: "caption" }, "The service has no phrases to compare with.")];
  const common = new Set(other?.map(({ text }) => text).filter((text) => own.some((line) => line.text === text)));
  const column = (title, texts) =>
    h(
      "div",
      {},
      h("h4", {}, title),
      h(
        "ol",
        { class: "phrases" },
        texts.map((line) => phrase(line, common.has(line.text))),
      ),
    );
  const note = other
    ? common.size
      ? "Marked phrases are near to both."
      : "No phrase is among the nearest of both."
    : "Phrases of the vocabulary nearest to it.";
  return [
    h(
      "div",
      { class: "why-columns" },
      other ? column("The query is nearest to", other) : null,
      column("This is nearest to", own),
    ),
    h("p", { class: "caption" }, `${note} The percentage is the share of the reference that a phrase fits less.`),
  ];
}

function phrase({ text, percentile }, common) {
  return h(
    "li",
    { class: common ? "common" : "" },
    h("span", { class: "phrase" }, common ? h("span", { class: "hidden" }, "near to both: ") : null, text),
    h("span", { class: "phrase-score" }, bar(percentile), h("span", {}, percent(percentile))),
  );
}

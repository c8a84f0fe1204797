// The search tab: sends a request whenever the query changes, and shows the hits.

import { call } from "./api.js";
import { $, button, dot, fill, h, plain, plural, say, toast } from "./dom.js";
import { asWhere, conditions } from "./filters.js";
import { askFor } from "./query.js";
import { cards, SILENT } from "./results.js";
import { block, failure, skeleton } from "./states.js";
import * as store from "./store.js";

const EXAMPLES = 3; // of each modality

let about;
let running = null;
let shown = "";
let hits = [];

const listeners = [];

/** The hits on the page, in order. */
export const found = () => hits;

/** Call `run()` whenever the hits change. */
export function onFound(run) {
  listeners.push(run);
}

function keep(others) {
  hits = others;
  for (const run of listeners) run();
}

/** Set up the tab. */
export function startSearch(known) {
  about = known;
  store.watch((state) => search(state));
  search(store.get());
}

const question = ({ parts, where, k, rank, along, grouped }) => ({
  parts: store.asked(parts),
  k: Math.min(k, about.limits?.k ?? k),
  where: asWhere(where),
  rank,
  ...(along.every(Boolean) ? { along } : {}),
  per_modality: grouped,
});

async function search(state, force = false) {
  const asked = question(state);
  const key = JSON.stringify(asked);
  if (key === shown && !force) return;
  shown = key;
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  if (!asked.parts.length) return empty(state);
  const here = $("results").contains(document.activeElement);
  busy(true);
  fill($("results"), heading("Searching …"), skeleton(Math.min(asked.k, 12)));
  try {
    const answer = await call("api/search", { json: asked, signal });
    if (signal.aborted) return;
    show(answer, state);
    if (here) $("results-title")?.focus();
  } catch (error) {
    if (signal.aborted) return;
    keep([]);
    fill(
      $("results"),
      failure(error, () => search(store.get(), true), lost(error, state)),
    );
  } finally {
    if (!signal.aborted) busy(false);
  }
}

const busy = (on) => $("results").setAttribute("aria-busy", String(on));

const heading = (...text) => h("h2", { id: "results-title", tabindex: "-1" }, ...text);

/** If a file is no longer stored by the server, offer to continue without it. */
function lost(error, { parts }) {
  const rest = parts.filter((part) => part.kind !== "upload");
  if (error.status !== 404 || rest.length === parts.length) return [];
  return [button({ text: "Remove the files", press: () => store.set({ parts: rest }) })];
}

function show(answer, state) {
  keep(answer.hits);
  if (!hits.length) return nothing(state);
  const relevance = (kind) => answer.relevance?.[kind.name] ?? 0;
  const counts = about.modalities
    .filter((kind) => answer.counts?.[kind.name] || kind.name in (answer.relevance ?? {}))
    .sort((one, other) => relevance(other) - relevance(one))
    .map((kind) => {
      const silent = relevance(kind) < SILENT;
      const title = silent ? `${kind.title}: little to say to this query` : kind.title;
      const count = answer.counts?.[kind.name] ?? 0;
      return h("li", { class: silent ? "silent" : "", title }, dot(kind), `${kind.title} ${count}`);
    });
  const copy = button({ text: "Copy link", image: "link", press: () => share(state) });
  const group = button({
    text: state.grouped ? "One list" : "Group by modality",
    press: () => store.set({ grouped: !state.grouped }),
  });
  const map = button({ text: "On the map", image: "map", press: () => store.set({ tab: "map" }) });
  const took = answer.seconds < 0.01 ? "under 0.01 s" : `${answer.seconds.toFixed(2)} s`;
  fill(
    $("results"),
    h(
      "div",
      { class: "results-head" },
      h(
        "div",
        {},
        heading(plural(hits.length, "hit")),
        h("p", { class: "caption" }, `of ${plural(about.items, "item")}, in ${took}`),
      ),
      h("ul", { class: "counts", "aria-label": "Hits by modality" }, counts),
      h("div", { class: "actions" }, group, map, copy),
    ),
    cards(hits, about, state.grouped),
    h(
      "p",
      { class: "caption below" },
      "Bar and percentage: rank within its modality. z: standard deviations above what is usual there. Hits are ordered by z and by how much their modality has to say to the query.",
    ),
  );
  say(`${plural(hits.length, "hit")}; the first: ${describe(hits[0])}`);
}

const describe = (hit) => {
  const title = about.modalities.find((kind) => kind.name === hit.modality)?.title ?? hit.modality;
  return `${title}${hit.fields?.label ? `, ${plain(hit.fields.label)}` : ""}`;
};

async function share(state) {
  const left = state.parts.some((part) => part.kind === "upload") ? " without your files" : "";
  try {
    await navigator.clipboard.writeText(location.href);
    toast(`Link copied${left}`);
  } catch {
    toast("The browser did not allow copying; take the address from its bar");
  }
}

function nothing(state) {
  const n = conditions(state.where);
  const free = () => store.set({ where: { modality: [], label: [], patient: [], since: "", until: "" } });
  say("No hits");
  fill(
    $("results"),
    block({
      image: "none",
      title: "No hits",
      text: n ? "No item fits all filters." : "The index has no item this query can be compared with.",
      actions: n ? [button({ text: "Search without filters", kind: "primary", press: free })] : [],
    }),
  );
}

/** A few labels for each modality, without duplicates. */
function deal(piles) {
  const used = new Set();
  const dealt = piles.map(() => []);
  for (let round = 0; round < EXAMPLES; round += 1) {
    piles.forEach((pile, at) => {
      const label = pile.find((name) => !used.has(name) && !name.includes("|"));
      if (label === undefined) return;
      used.add(label);
      dealt[at].push(label);
    });
  }
  return dealt;
}

function empty(state) {
  keep([]);
  busy(false);
  if (!about.items) {
    fill(
      $("results"),
      block({
        image: "none",
        title: "The index is empty",
        text: "Encode files into it with m3bind encode; they appear here without a restart.",
      }),
    );
    return;
  }
  const kinds = about.modalities.filter((kind) => kind.items);
  const dealt = deal(kinds.map((kind) => about.labels?.[kind.name] ?? []));
  const groups = kinds.map((kind, at) => {
    const examples = dealt[at].map((label) =>
      h("button", { type: "button", class: "example", on: { click: () => askFor(plain(label)) } }, plain(label)),
    );
    return h(
      "li",
      { class: "kind" },
      h(
        "span",
        { class: "kind-name" },
        dot(kind),
        h("span", {}, kind.title),
        h("span", { class: "count" }, plural(kind.items, "item")),
      ),
      h("span", { class: "examples" }, examples),
    );
  });
  const n = conditions(state.where);
  fill(
    $("results"),
    h(
      "div",
      { class: "welcome" },
      h("h2", {}, "Search by text, image, scan or ECG"),
      h(
        "p",
        {},
        "All modalities share one embedding space with text: a sentence finds X-rays, an X-ray finds ECGs, and parts can be added or avoided.",
      ),
      n ? h("p", { class: "caption" }, `${plural(n, "filter")} set; they apply to the next query.`) : null,
      h("h3", {}, "Examples"),
      h("ul", { class: "kinds" }, groups),
    ),
  );
}

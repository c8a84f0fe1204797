// The state of the page in one object, stored in the address for links and the history.
//
// It stands behind the "#", which browsers do not send: query texts reach no access log.
// Uploads are not in the address; they stay in the history of this browser only.

const START = {
  tab: "search",
  parts: [], // {kind: text | item | upload, value, weight, modality unless text}
  where: { modality: [], label: [], patient: [], since: "", until: "" },
  k: 12,
  rank: "calibrated",
  along: ["", ""], // two opposite wordings, or none
  grouped: false,
  open: null, // {kind: item | upload, value}
  zero: { source: null, labels: [], template: "", threshold: 0.5 },
};
const TABS = ["search", "map", "zero-shot"];
const LISTS = ["modality", "label", "patient"];
const DAYS = ["since", "until"];
const WEIGHTED = /^(-?\d*\.?\d+)~/;

/** The state in an address. */
export function read(hash) {
  const [name, query = ""] = hash.replace(/^#\/?/, "").split("?");
  const state = structuredClone(START);
  if (TABS.includes(name)) state.tab = name;
  for (const [key, text] of new URLSearchParams(query)) {
    const number = Number(text);
    if (key === "text" || key === "item") state.parts.push(part(key, text));
    else if (LISTS.includes(key)) state.where[key].push(text);
    else if (DAYS.includes(key)) state.where[key] = text;
    else if (key === "k" && Number.isInteger(number) && number > 0) state.k = number;
    else if (key === "rank" && text === "cosine") state.rank = text;
    else if (key === "either") state.along[0] = text;
    else if (key === "or") state.along[1] = text;
    else if (key === "grouped") state.grouped = text === "1";
    else if (key === "open") state.open = { kind: "item", value: text };
    else if (key === "source") state.zero.source = { kind: "item", value: text };
    else if (key === "option") state.zero.labels.push(text);
    else if (key === "template") state.zero.template = text;
    else if (key === "threshold" && number >= 0 && number <= 1) state.zero.threshold = number;
  }
  return state;
}

/** The address of a state; defaults are omitted. */
export function write(state) {
  const query = new URLSearchParams();
  for (const { kind, value, weight } of state.parts) {
    if (kind !== "upload") query.append(kind, weight === 1 && !WEIGHTED.test(value) ? value : `${weight}~${value}`);
  }
  for (const name of LISTS) for (const value of state.where[name]) query.append(name, value);
  for (const name of DAYS) if (state.where[name]) query.append(name, state.where[name]);
  for (const name of ["k", "rank"]) if (state[name] !== START[name]) query.append(name, state[name]);
  ["either", "or"].forEach((name, at) => state.along[at] && query.append(name, state.along[at]));
  if (state.grouped) query.append("grouped", "1");
  if (state.open?.kind === "item") query.append("open", state.open.value);
  const { source, labels, template, threshold } = state.zero;
  if (source?.kind === "item") query.append("source", source.value);
  for (const label of labels) query.append("option", label);
  if (template !== START.zero.template) query.append("template", template);
  if (threshold !== START.zero.threshold) query.append("threshold", threshold);
  const text = query.toString();
  return `#/${state.tab}${text ? `?${text}` : ""}`;
}

function part(kind, text) {
  const match = text.match(WEIGHTED);
  const weight = match ? Number(match[1]) : 0;
  return weight ? { kind, value: text.slice(match[0].length), weight } : { kind, value: text, weight: 1 };
}

/** The state of an entry of the history; that of another version of the page is ignored. */
function now(entry) {
  const kept = entry?.m3bind;
  const whole = kept && Object.keys(START).every((name) => name in kept);
  return whole && write(kept) === location.hash ? kept : read(location.hash);
}

const listeners = [];
let state = now(history.state);

export const get = () => state;

/** Call `run(state, before)` whenever something changes. */
export function watch(run) {
  listeners.push(run);
}

/** Change parts of the state; `quiet` changes the current entry of the history instead of adding one. */
export function set(change, { quiet = false } = {}) {
  const before = state;
  state = { ...state, ...change };
  if (JSON.stringify(before) === JSON.stringify(state)) return;
  history[quiet ? "replaceState" : "pushState"]({ m3bind: state }, "", write(state));
  for (const run of listeners) run(state, before);
}

/** An empty query: the page as on a first visit. */
export const clear = () =>
  set({ parts: [], where: structuredClone(START.where), along: structuredClone(START.along), open: null });

/** The parts in the form of a request. */
export const asked = (parts) => parts.map(({ kind, value, weight }) => ({ kind, value, weight }));

addEventListener("popstate", (event) => {
  const before = state;
  state = now(event.state);
  for (const run of listeners) run(state, before);
});

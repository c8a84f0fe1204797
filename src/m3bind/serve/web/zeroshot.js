// The zero-shot tab: probabilities of the user's own labels for one file or item, or an abstention.

import { call, pictureOf, place } from "./api.js";
import { $, bar, button, dot, fill, h, percent, plain, say } from "./dom.js";
import { block, failure, waiting } from "./states.js";
import * as store from "./store.js";
import { upload } from "./uploads.js";

const MOST_EXAMPLES = 6;

let about;
let running = null;
let shown = "";

/** Set up the tab. */
export function startZeroShot(known) {
  about = known;
  $("zero").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  $("zero-labels").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask();
  });
  $("zero-pick").addEventListener("click", () => $("zero-files").click());
  $("zero-files").addEventListener("change", () => {
    takeZeroFiles([...$("zero-files").files]);
    $("zero-files").value = "";
  });
  $("threshold").addEventListener("input", () => {
    $("threshold-value").textContent = percent(100 * $("threshold").value);
  });
  store.watch((state) => draw(state));
  draw(store.get());
}

/** Send a file and use it as the source. */
export function takeZeroFiles(files) {
  const done = ({ id, modality }) => change({ source: { kind: "upload", value: id, modality } });
  upload(files, { list: $("zero-sending"), about, done });
}

const change = (values) => store.set({ zero: { ...store.get().zero, ...values } });

function typed() {
  const lines = $("zero-labels")
    .value.split("\n")
    .map((line) => line.trim())
    .filter(Boolean);
  return [...new Set(lines)];
}

/** A line "label = text | text" in parts; without "=" the label has no texts of its own. */
function parted(line) {
  const [label, texts = ""] = line.split(/\s=\s(.*)/s);
  return { label: label.trim(), texts: texts.split(/\s\|\s/).map((text) => text.trim()).filter(Boolean) };
}

/** Labels, and their texts if a line has any; a label without texts stands for itself then. */
function classes(lines) {
  const parts = lines.map(parted);
  const labels = parts.map(({ label }) => label);
  if (!parts.some(({ texts }) => texts.length)) return { labels };
  return { labels, prompts: Object.fromEntries(parts.map(({ label, texts }) => [label, texts.length ? texts : [label]])) };
}

function ask() {
  const { source } = store.get().zero;
  const labels = typed();
  const template = $("template").value.trim();
  const most = about.limits?.labels ?? Infinity;
  const wrong = !source
    ? "Choose a file first, or open a hit and press Classify."
    : labels.length < 2
      ? "Type at least two labels, one per line; a single one has nothing to be compared with."
      : labels.length > most
        ? `At most ${most} labels are compared at once.`
        : template && !template.includes("{}")
          ? "The template needs {} where the label goes."
          : template && classes(labels).prompts
            ? "Labels with texts of their own take no template; remove one of both."
            : "";
  $("zero-error").textContent = wrong;
  if (wrong) return;
  shown = "";
  const threshold = Number($("threshold").value);
  const before = JSON.stringify(store.get().zero);
  change({ labels, template, threshold });
  if (JSON.stringify(store.get().zero) === before) draw(store.get());
}

function draw(state) {
  const { source, labels, template, threshold } = state.zero;
  drawSource(source);
  if (typed().join("\n") !== labels.join("\n") && (labels.length || !$("zero-labels").value))
    $("zero-labels").value = labels.join("\n");
  if (document.activeElement !== $("template")) $("template").value = template;
  $("threshold").value = String(threshold);
  $("threshold-value").textContent = percent(100 * threshold);
  if (state.tab !== "zero-shot") return;
  const asked = source && {
    source: { kind: source.kind, value: source.value },
    ...classes(labels),
    threshold,
    ...(template ? { template } : {}),
  };
  const key = JSON.stringify(asked);
  if (key === shown) return;
  if (!source || labels.length < 2) {
    shown = "";
    fill(
      $("zero-results"),
      block({
        image: "scale",
        title: "Classify with your own labels",
        text: "Choose a file or an item and type labels: their calibrated probabilities appear here, or the reason for an abstention.",
      }),
    );
    return;
  }
  shown = key;
  weigh(asked);
}

async function drawSource(source) {
  const host = $("zero-source");
  const key = source ? `${source.kind} ${source.value}` : "";
  if (host.dataset.key === key) return;
  host.dataset.key = key;
  examples(source?.modality);
  if (!source) {
    fill(
      host,
      h("p", { class: "caption" }, "Nothing chosen yet: drop, paste or choose a file, or press “Classify” on a hit."),
    );
    return;
  }
  if (!source.modality) {
    const item = await call(place(source)).catch(() => null);
    if (host.dataset.key !== key) return;
    if (item) source = { ...source, modality: item.modality };
    examples(source.modality);
  }
  const kind = about.modalities.find((one) => one.name === source.modality);
  const image = h("img", {
    src: pictureOf(source, "thumbnail", { size: 160 }),
    alt: "",
    on: { error: () => image.remove() },
  });
  const name = `${kind?.title ?? "An item"}${source.kind === "upload" ? " (your file)" : ""}`;
  fill(
    host,
    h(
      "div",
      { class: "source" },
      h(
        "button",
        {
          type: "button",
          class: "look",
          title: "Open it",
          "aria-label": `Open ${name}`,
          on: { click: () => store.set({ open: { kind: source.kind, value: source.value } }) },
        },
        image,
      ),
      h("span", { class: "grow" }, kind ? dot(kind) : null, name),
      button({
        label: "Remove it",
        image: "close",
        press: () => {
          change({ source: null });
          $("zero-pick").focus();
        },
      }),
    ),
  );
}

/** Labels of the index to start from. */
function examples(modality) {
  const names = modality ? [modality] : about.modalities.map((kind) => kind.name);
  const labels = [
    ...new Set(
      names
        .flatMap((name) => about.labels?.[name] ?? [])
        .flatMap((label) => label.split("|"))
        .map(plain),
    ),
  ];
  const add = (label) => {
    $("zero-labels").value = [...new Set([...typed(), label])].join("\n");
    say(`Added ${label}`);
  };
  const use = ({ task, prompts }) => {
    $("zero-labels").value = Object.entries(prompts)
      .map(([label, texts]) => `${label} = ${texts.join(" | ")}`)
      .join("\n");
    say(`Took the classes of ${plain(task)}`);
  };
  const own = (about.classes ?? []).filter((one) => one.modality === "*" || names.includes(one.modality));
  $("zero-classes-box").hidden = !own.length;
  fill(
    $("zero-classes"),
    own.map((one) => h("button", { type: "button", class: "example", on: { click: () => use(one) } }, plain(one.task))),
  );
  $("zero-examples-box").hidden = !labels.length;
  fill(
    $("zero-examples"),
    labels
      .slice(0, MOST_EXAMPLES)
      .map((label) => h("button", { type: "button", class: "example", on: { click: () => add(label) } }, label)),
  );
}

async function weigh(asked) {
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  const host = $("zero-results");
  host.setAttribute("aria-busy", "true");
  fill(host, waiting("Computing the probabilities …"));
  try {
    const answer = await call("api/zero-shot", { json: asked, signal });
    if (!signal.aborted) show(answer, asked);
  } catch (error) {
    if (!signal.aborted)
      fill(
        host,
        failure(error, () => weigh(asked)),
      );
  } finally {
    if (!signal.aborted) host.setAttribute("aria-busy", "false");
  }
}

function show(answer, { labels, threshold }) {
  const lines = labels
    .map((label, i) => ({ label, share: 100 * answer.probabilities[i] }))
    .sort((a, b) => b.share - a.share);
  const kind = about.modalities.find((one) => one.name === answer.modality);
  const best = lines[0];
  const verdict = answer.abstain
    ? h(
        "div",
        { class: "verdict abstain" },
        h("h2", {}, "No answer"),
        h("p", {}, answer.why || "No label is sure enough."),
      )
    : h(
        "div",
        { class: "verdict" },
        h("h2", {}, best.label),
        h("p", {}, answer.why || `${percent(best.share)}, at or above the threshold of ${percent(100 * threshold)}.`),
      );
  const note = answer.calibrated
    ? "The probabilities are calibrated: of all answers given with 80 %, about 80 % are right on data like that of the calibration."
    : "The probabilities are not calibrated; use their order, not their values.";
  fill(
    $("zero-results"),
    verdict,
    h(
      "ol",
      { class: "shares" },
      lines.map((line, i) => share(line, threshold, answer.abstain || i > 0)),
    ),
    h("p", { class: "caption" }, kind ? [dot(kind), `${kind.title}. `] : null, note),
  );
  if ($("zero-results").getBoundingClientRect().top > innerHeight - 160)
    $("zero-results").scrollIntoView({ block: "start" });
  say(answer.abstain ? `No answer. ${answer.why}` : `${best.label}, ${percent(best.share)}`);
}

function share({ label, share: size }, threshold, weak) {
  const track = bar(size, `wide ${weak ? "weak" : ""}`);
  track.append(h("span", { class: "mark", vars: { left: `${100 * threshold}%` } }));
  return h(
    "li",
    {},
    h("span", { class: "share-name" }, label),
    track,
    h("span", { class: "share-number" }, percent(size)),
  );
}

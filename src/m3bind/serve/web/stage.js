// An image that can be zoomed and moved; of a volume, one slice in a window of grey values.

import { pictureOf } from "./api.js";
import { button, h, say, zoomButtons } from "./dom.js";
import { View, watchGestures } from "./gestures.js";
import { smallFailure } from "./states.js";

const SIZE = 1024; // pixels of requested images
const NOTCH = 60; // of a wheel, for one slice
const WINDOWS = { auto: "Auto", lung: "Lung", soft: "Soft tissue", bone: "Bone" };

/** A viewer of `source`: { kind, value } with `slices` for a volume. */
export function stage(source, { title, slices = null }) {
  const view = new View(12);
  const picture = h("img", { alt: "", draggable: "false" });
  const trouble = h("div", { class: "stage-trouble" });
  const help = slices ? "Arrow up and down: slices. Plus, minus, 0: zoom." : "Plus, minus, 0: zoom. Arrows: move.";
  const frame = h(
    "div",
    { class: "stage", tabindex: "0", role: "group", "aria-label": `${title}. ${help}` },
    picture,
    trouble,
  );
  const size = () => [frame.clientWidth, frame.clientHeight];
  const draw = () => {
    picture.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
    frame.classList.toggle("zoomed", view.scale > 1);
  };
  const zoom = (factor, x = size()[0] / 2, y = size()[1] / 2) => {
    view.zoom(factor, x, y, ...size());
    draw();
  };
  const pan = (dx, dy) => {
    view.pan(dx, dy, ...size());
    draw();
  };
  const reset = () => {
    view.reset();
    draw();
  };
  const slider = slices ? slicer(source, { title, slices, picture, frame, trouble }) : null;
  if (!slider) single(source, { title, picture, frame, trouble });
  let turned = 0;
  const wheel = slider
    ? (lines) => {
        turned += lines;
        const notches = Math.trunc(turned / NOTCH);
        turned -= notches * NOTCH;
        if (notches) slider.step(notches);
      }
    : null;
  watchGestures(frame, { pan, zoom, wheel });
  frame.addEventListener("dblclick", () => (view.scale > 1 ? reset() : zoom(2.5)));
  frame.addEventListener("keydown", (event) => {
    const [dx, dy] = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] }[event.key] ?? [
      0, 0,
    ];
    if (event.key === "+" || event.key === "=") zoom(1.4);
    else if (event.key === "-") zoom(1 / 1.4);
    else if (event.key === "0") reset();
    else if (slider && dy) slider.step(dy > 0 ? 1 : -1);
    else if (dx || dy) pan(dx, dy);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  const tools = h(
    "div",
    { class: "stage-tools", role: "group", "aria-label": "Zoom" },
    zoomButtons(
      "image",
      () => zoom(1.4),
      () => zoom(1 / 1.4),
      reset,
    ),
  );
  return h("div", { class: "viewer" }, h("div", { class: "stage-box" }, frame, tools), slider?.controls);
}

function watchPicture({ picture, frame, trouble }, load) {
  picture.addEventListener("load", () => {
    frame.classList.remove("loading");
    trouble.replaceChildren();
  });
  picture.addEventListener("error", () => {
    frame.classList.remove("loading");
    const error = { message: "The image cannot be shown: its file is missing or damaged, or the server does not answer." };
    trouble.replaceChildren(smallFailure(error, load));
  });
}

function single(source, parts) {
  const load = () => {
    parts.frame.classList.add("loading");
    parts.picture.src = pictureOf(source, "picture", { size: SIZE });
  };
  parts.picture.alt = parts.title;
  watchPicture(parts, load);
  load();
}

function slicer(source, { title, slices, ...parts }) {
  let slice = Math.floor(slices / 2);
  let preset = "auto";
  const range = h("input", {
    type: "range",
    min: "0",
    max: String(slices - 1),
    step: "1",
    value: String(slice),
    "aria-label": "Slice",
  });
  const label = h("output", { class: "slice" });
  const picked = (of) =>
    pictureOf(source, "picture", { size: SIZE, slice: of, window: preset === "auto" ? null : preset });
  const load = () => {
    parts.frame.classList.add("loading");
    range.value = String(slice);
    range.setAttribute("aria-valuetext", `Slice ${slice + 1} of ${slices}`);
    label.textContent = `${slice + 1} / ${slices}`;
    parts.picture.alt = `${title}, slice ${slice + 1} of ${slices}, ${WINDOWS[preset].toLowerCase()} window`;
    parts.picture.src = picked(slice);
  };
  parts.picture.addEventListener("load", () => {
    for (const near of [slice + 1, slice - 1]) if (near >= 0 && near < slices) new Image().src = picked(near);
  });
  const show = (next) => {
    slice = Math.min(slices - 1, Math.max(0, next));
    load();
  };
  range.addEventListener("input", () => show(Number(range.value)));
  const choose = (name) => {
    preset = name;
    load();
    say(`${WINDOWS[name]} window`);
  };
  const name = `window-${source.value}`;
  const presets = Object.entries(WINDOWS).map(([key, text]) =>
    h(
      "label",
      { class: "choice" },
      h("input", { type: "radio", name, value: key, checked: key === preset, on: { change: () => choose(key) } }),
      h("span", {}, text),
    ),
  );
  watchPicture(parts, load);
  load();
  const controls = h(
    "div",
    { class: "viewer-controls" },
    h("div", { class: "slider" }, h("span", { class: "caption" }, "Slice"), range, label),
    h("fieldset", { class: "choices" }, h("legend", { class: "hidden" }, "Window"), presets),
  );
  return {
    controls,
    step: (by) => {
      show(slice + by);
      say(`Slice ${slice + 1} of ${slices}`);
    },
  };
}

// The map of the space: a sample of its items as points, with the query among them.

import { call, place } from "./api.js";
import { $, dot, fill, h, plain, plural, say, zoomButtons } from "./dom.js";
import { View, watchGestures } from "./gestures.js";
import { table } from "./points.js";
import { shot } from "./results.js";
import { found, onFound } from "./search.js";
import { block, failure, waiting } from "./states.js";
import * as store from "./store.js";

const POLL = 2000; // milliseconds between requests until the map is ready
const NEAR = 14; // pixels from a point that count as on it
const EDGE = 34; // pixels left free around
const STRETCH = 1.8; // maximum ratio between the scales of the axes
const dark = matchMedia("(prefers-color-scheme: dark)");

let about;
let data = null; // {id, modality, x, y}: columns of the sample
let started = false;
let query = null; // position of the query
let placed = "";
let hidden = new Set(); // hidden modalities
let chosen = -1;
let canvas, frame, tip, view, timer;
const cache = new Map(); // id -> item

/** Set up the tab; the map is fetched when it is first shown. */
export function startMap(known) {
  about = known;
  store.watch(look);
  onFound(() => data && frame && mark());
  look(store.get());
}

function look({ tab, parts }) {
  if (tab !== "map") {
    clearTimeout(timer);
    started = started && data !== null;
    return;
  }
  if (!started) {
    started = true;
    load();
  } else if (data) locate(parts);
}

async function load() {
  const host = $("map-body");
  if (!data) fill(host, h("div", { class: "map-wait" }, waiting("Fetching the map …")));
  try {
    const answer = await call("api/map");
    if (answer.state === "ready") return show(answer);
    fill(
      host,
      block({
        image: "map",
        title: "The map is being computed",
        text: "This takes a moment the first time; it appears here by itself.",
        actions: [h("span", { class: "spinner", "aria-hidden": "true" })],
      }),
    );
    say("The map is being computed");
    timer = setTimeout(load, POLL);
  } catch (error) {
    fill(host, failure(error, load));
  }
}

function show({ points, method }) {
  data = points;
  if (!data.id.length) {
    fill($("map-body"), block({ image: "none", title: "No items", text: "The index is empty." }));
    return;
  }
  view = new View(40);
  canvas = h("canvas", { "aria-hidden": "true" });
  tip = h("div", { class: "map-tip", hidden: true });
  frame = h(
    "div",
    {
      class: "map-frame",
      tabindex: "0",
      role: "application",
      "aria-label": "Map of the space",
      "aria-describedby": "map-help",
    },
    canvas,
    tip,
  );
  const tools = h(
    "div",
    { class: "stage-tools", role: "group", "aria-label": "Zoom" },
    zoomButtons(
      "map",
      () => zoom(1.5),
      () => zoom(1 / 1.5),
      reset,
    ),
  );
  fill(
    $("map-body"),
    h(
      "div",
      { class: "legend", role: "group", "aria-label": "Shown modalities" },
      about.modalities.filter((kind) => data.modality.includes(kind.name)).map(toggle),
      h("span", { class: "grow" }),
      h("span", { class: "legend-note", id: "map-note" }),
    ),
    h("div", { class: "stage-box map-box" }, frame, tools),
    h(
      "p",
      { class: "caption", id: "map-help" },
      `${data.id.length < about.items ? `A sample of ${plural(data.id.length, "item")} of ${about.items.toLocaleString("en")}. ` : ""}${method ? `Computed by ${method}. ` : ""}Arrow keys move to the next point, Enter opens it; plus, minus and 0 zoom.`,
    ),
    table(data, { kinds: about.modalities, describe, open }),
  );
  watchGestures(frame, {
    pan,
    zoom,
    tap: (x, y) => {
      const at = nearest(x, y);
      if (at >= 0) open(at);
    },
  });
  frame.addEventListener("pointermove", (event) => {
    if (event.buttons) return;
    const box = frame.getBoundingClientRect();
    choose(nearest(event.clientX - box.left, event.clientY - box.top));
  });
  frame.addEventListener("pointerleave", () => document.activeElement !== frame && choose(-1));
  frame.addEventListener("blur", () => choose(-1));
  frame.addEventListener("keydown", press);
  new ResizeObserver(draw).observe(frame);
  dark.addEventListener("change", draw);
  locate(store.get().parts);
}

function toggle(kind) {
  const n = data.modality.filter((name) => name === kind.name).length;
  const press = h(
    "button",
    { type: "button", class: "target", "aria-pressed": "true" },
    dot(kind),
    kind.title,
    h("span", { class: "count" }, String(n)),
  );
  press.addEventListener("click", () => {
    if (!hidden.delete(kind.name)) hidden.add(kind.name);
    press.setAttribute("aria-pressed", String(!hidden.has(kind.name)));
    choose(-1);
    draw();
  });
  return press;
}

async function locate(parts) {
  const asked = store.asked(parts);
  const key = JSON.stringify(asked);
  if (key !== placed) {
    placed = key;
    query = null;
    if (parts.length) query = await call("api/map/place", { json: { parts: asked } }).catch(() => null);
    if (key !== placed) return;
  }
  mark();
}

/** Set the legend of the signs, and draw the map. */
function mark() {
  const rings = found().filter((hit) => data.id.includes(hit.id)).length;
  $("map-note").textContent = query ? `★ your query${rings ? ` · ◯ ${plural(rings, "hit")}` : ""}` : "";
  draw();
}

const size = () => [frame.clientWidth, frame.clientHeight];

function zoom(factor, x = size()[0] / 2, y = size()[1] / 2) {
  view.zoom(factor, x, y, ...size());
  draw();
}

function pan(dx, dy) {
  view.pan(dx, dy, ...size());
  draw();
}

function reset() {
  view.reset();
  draw();
}

/** From the map's coordinates to pixels. */
function projection() {
  const [width, height] = size();
  const all = (name) => (query ? [...data[name], query[name]] : data[name]);
  const [left, right] = [Math.min(...all("x")), Math.max(...all("x"))];
  const [low, high] = [Math.min(...all("y")), Math.max(...all("y"))];
  const wide = (width - 2 * EDGE) / (right - left || 1);
  const tall = (height - 2 * EDGE) / (high - low || 1);
  const [across, up] = [Math.min(wide, STRETCH * tall), Math.min(tall, STRETCH * wide)];
  const x = (value) => ((value - (left + right) / 2) * across + width / 2) * view.scale + view.x;
  const y = (value) => (((low + high) / 2 - value) * up + height / 2) * view.scale + view.y;
  return { x, y };
}

function draw() {
  if (!canvas || !frame.clientWidth) return;
  const [width, height] = size();
  const ratio = devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink");
  const lift = style.getPropertyValue("--lift");
  const at = projection();
  const radius = Math.min(8, 3.2 * view.scale ** 0.35);
  const colors = new Map(about.modalities.map((kind) => [kind.name, kind.color]));
  const ring = (i, wide, line) => {
    pen.beginPath();
    pen.arc(at.x(data.x[i]), at.y(data.y[i]), wide, 0, 7);
    Object.assign(pen, { strokeStyle: ink, lineWidth: line });
    pen.stroke();
  };
  pen.globalAlpha = 0.8;
  for (let i = 0; i < data.id.length; i += 1) {
    if (hidden.has(data.modality[i])) continue;
    pen.beginPath();
    pen.fillStyle = `color-mix(in srgb, ${colors.get(data.modality[i]) ?? "#888888"}, white ${lift})`;
    pen.arc(at.x(data.x[i]), at.y(data.y[i]), radius, 0, 7);
    pen.fill();
  }
  pen.globalAlpha = 1;
  const hits = new Set(found().map((hit) => hit.id));
  data.id.forEach((id, i) => hits.has(id) && !hidden.has(data.modality[i]) && ring(i, radius + 3, 1.6));
  if (query) star(pen, at.x(query.x), at.y(query.y), 13, ink, style.getPropertyValue("--page"));
  if (chosen >= 0) ring(chosen, radius + 4, 3);
}

function star(pen, x, y, radius, fill, line) {
  pen.beginPath();
  for (let i = 0; i < 10; i += 1) {
    const far = i % 2 ? radius * 0.45 : radius;
    pen.lineTo(x + far * Math.sin((i * Math.PI) / 5), y - far * Math.cos((i * Math.PI) / 5));
  }
  pen.closePath();
  Object.assign(pen, { fillStyle: fill, strokeStyle: line, lineWidth: 2.5 });
  pen.stroke();
  pen.fill();
}

/** The point nearest to a position on the screen, -1 if none is near. */
function nearest(x, y) {
  const at = projection();
  let best = -1;
  let least = NEAR;
  data.id.forEach((_, i) => {
    const away = Math.hypot(at.x(data.x[i]) - x, at.y(data.y[i]) - y);
    if (away < least && !hidden.has(data.modality[i])) [best, least] = [i, away];
  });
  return best;
}

async function choose(i) {
  if (i === chosen) return;
  chosen = i;
  frame.classList.toggle("pointing", i >= 0);
  draw();
  tip.hidden = true;
  if (i < 0) return;
  const item = await describe(i);
  if (i !== chosen || !item) return;
  const kind = about.modalities.find((one) => one.name === data.modality[i]);
  fill(
    tip,
    shot({ ...item, id: data.id[i] }, kind, 160),
    h("p", {}, dot(kind), kind.title),
    h("p", {}, plain(item.fields?.label ?? "")),
  );
  tip.hidden = false;
  const at = projection();
  const [width, height] = size();
  const [x, y] = [at.x(data.x[i]), at.y(data.y[i])];
  tip.style.left = `${Math.max(4, x + 18 + tip.offsetWidth > width ? x - 18 - tip.offsetWidth : x + 18)}px`;
  tip.style.top = `${Math.max(4, Math.min(height - tip.offsetHeight - 4, y - tip.offsetHeight / 2))}px`;
  if (document.activeElement === frame)
    say(`${kind.title}${item.fields?.label ? `, ${plain(item.fields.label)}` : ""}`);
}

async function describe(i) {
  const id = data.id[i];
  if (!cache.has(id))
    cache.set(
      id,
      call(place({ kind: "item", value: id })).catch(() => (cache.delete(id), null)),
    );
  return cache.get(id);
}

const open = (i) => store.set({ open: { kind: "item", value: data.id[i] } });

function press(event) {
  const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (way) step(way);
  else if (event.key === "+" || event.key === "=") zoom(1.5);
  else if (event.key === "-") zoom(1 / 1.5);
  else if (event.key === "0") reset();
  else if (event.key === "Enter" && chosen >= 0) open(chosen);
  else return;
  event.preventDefault();
}

/** Move to the next point in a direction; without a chosen one, from the query or the middle. */
function step([dx, dy]) {
  const at = projection();
  const [width, height] = size();
  const middle = query ? [at.x(query.x), at.y(query.y)] : [width / 2, height / 2];
  const from = chosen < 0 ? middle : [at.x(data.x[chosen]), at.y(data.y[chosen])];
  let [best, least] = [chosen, Infinity];
  data.id.forEach((_, i) => {
    const [x, y] = [at.x(data.x[i]) - from[0], at.y(data.y[i]) - from[1]];
    const [along, aside] = [x * dx + y * dy, Math.abs(x * dy) + Math.abs(y * dx)];
    if (i === chosen || hidden.has(data.modality[i]) || (chosen >= 0 && along <= 0.5)) return;
    const cost = chosen < 0 ? Math.hypot(x, y) : along + 2 * aside;
    if (cost < least) [best, least] = [i, cost];
  });
  if (best < 0) return;
  const [x, y] = [at.x(data.x[best]), at.y(data.y[best])];
  pan(x < 20 ? 60 - x : Math.min(0, width - 60 - x), y < 20 ? 60 - y : Math.min(0, height - 60 - y));
  choose(best);
}

// An ECG as on paper: 12 named leads on a millimetre grid, 25 mm/s and 10 mm/mV, which can be changed.

import { call, place } from "./api.js";
import { fill, h, zoomButtons } from "./dom.js";
import { smallFailure, waiting } from "./states.js";

const PAPER = {
  light: { back: "#fffaf8", fine: "#f7dcd7", bold: "#e9aea5", ink: "#17202a" },
  dark: { back: "#161b21", fine: "#2c2628", bold: "#563a3b", ink: "#f1e3cf" },
};
const PULSE = 0.2; // seconds of the 1 mV pulse at the beginning of a line
const MARGIN = 3; // mm around
const dark = matchMedia("(prefers-color-scheme: dark)");

/** A viewer of the signal of `source`. */
export function signal(source, { title }) {
  const host = h("div", { class: "viewer" });
  const load = async () => {
    fill(host, waiting("Reading the ECG …"));
    try {
      fill(host, ...paper(await call(place(source, "signal")), title));
    } catch (error) {
      fill(host, smallFailure(error, load));
    }
  };
  load();
  return host;
}

function paper(data, title) {
  const seconds = Math.max(...data.mv.map((trace) => trace.length)) / data.rate;
  const view = { layout: "grid", speed: 25, gain: 10, zoom: 0 };
  const canvas = h("canvas", {});
  const scroll = h(
    "div",
    { class: "paper", tabindex: "0", role: "group", "aria-label": "The ECG; scroll with the arrow keys" },
    canvas,
  );
  const legend = h("p", { class: "caption" });
  const redraw = () => {
    const lines = arrange(data, view.layout, seconds);
    const width = 2 * MARGIN + (PULSE + 0.1) * view.speed + lines.seconds * view.speed;
    const fitting = Math.max(2, (scroll.clientWidth - 2) / width);
    const pixels = (fitting || 3) * 1.3 ** view.zoom;
    draw(canvas, data, lines, { ...view, width, pixels });
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${title}: leads ${data.leads.join(", ")}; ${seconds.toFixed(0)} seconds`);
    legend.textContent = `${view.speed} mm/s · ${view.gain} mm/mV · ${data.rate} Hz · ${seconds.toFixed(1)} s`;
  };
  new ResizeObserver(redraw).observe(scroll);
  dark.addEventListener("change", redraw);
  const zoom = (by) => {
    view.zoom = Math.max(0, Math.min(6, view.zoom + by));
    redraw();
  };
  scroll.addEventListener("keydown", (event) => {
    const by = { "+": 1, "=": 1, "-": -1, 0: -view.zoom }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    zoom(by);
  });
  scroll.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      zoom(event.deltaY < 0 ? 1 : -1);
    },
    { passive: false },
  );
  const choice = (name, label, options) => {
    const pick = h(
      "select",
      {
        on: {
          change: () => {
            view[name] = name === "layout" ? pick.value : Number(pick.value);
            redraw();
          },
        },
      },
      options.map(([value, text]) => h("option", { value: String(value), selected: value === view[name] }, text)),
    );
    return h("label", { class: "field inline" }, h("span", {}, label), pick);
  };
  const controls = h(
    "div",
    { class: "viewer-controls" },
    choice("layout", "Leads", [
      ["grid", "3 rows of 4, and II"],
      ["list", "12 rows, whole"],
    ]),
    choice("speed", "Speed", [
      [12.5, "12.5 mm/s"],
      [25, "25 mm/s"],
      [50, "50 mm/s"],
    ]),
    choice("gain", "Gain", [
      [5, "5 mm/mV"],
      [10, "10 mm/mV"],
      [20, "20 mm/mV"],
    ]),
    h(
      "div",
      { class: "tools" },
      zoomButtons(
        "ECG",
        () => zoom(1),
        () => zoom(-1),
        () => zoom(-view.zoom),
      ),
    ),
  );
  return [scroll, legend, controls];
}

/** Rows of pieces { lead, from, seconds, at }: all leads below each other, or as on a printed sheet. */
function arrange(data, layout, seconds) {
  const whole = (lead) => [{ lead, from: 0, seconds, at: 0 }];
  if (layout === "list" || data.leads.length !== 12) return { rows: data.leads.map((_, lead) => whole(lead)), seconds };
  const quarter = seconds / 4;
  const piece = (lead, column) => ({ lead, from: column * quarter, seconds: quarter, at: column * quarter });
  const rows = [0, 1, 2].map((row) => [0, 1, 2, 3].map((column) => piece(3 * column + row, column)));
  return { rows: [...rows, whole(1)], seconds };
}

function draw(canvas, data, { rows }, { width, pixels, speed, gain }) {
  const tall = Math.max(20, 2 * gain);
  const height = 2 * MARGIN + rows.length * tall;
  const ratio = devicePixelRatio || 1;
  canvas.dataset.pixels = String(pixels); // of a millimetre
  canvas.style.width = `${width * pixels}px`;
  canvas.style.height = `${height * pixels}px`;
  canvas.width = Math.round(width * pixels * ratio);
  canvas.height = Math.round(height * pixels * ratio);
  const pen = canvas.getContext("2d");
  pen.scale(pixels * ratio, pixels * ratio);
  const colors = dark.matches ? PAPER.dark : PAPER.light;
  pen.fillStyle = colors.back;
  pen.fillRect(0, 0, width, height);
  grid(pen, width, height, 1, colors.fine, 0.12);
  grid(pen, width, height, 5, colors.bold, 0.18);
  Object.assign(pen, {
    strokeStyle: colors.ink,
    fillStyle: colors.ink,
    lineWidth: Math.max(0.28, 1.1 / pixels),
    lineJoin: "round",
    font: "600 3.6px system-ui, sans-serif",
  });
  rows.forEach((pieces, row) => {
    const base = MARGIN + (row + 0.55) * tall;
    const start = MARGIN + (PULSE + 0.1) * speed;
    pulse(pen, MARGIN, base, speed, gain);
    for (const piece of pieces) {
      trace(pen, data, piece, start + piece.at * speed, base, speed, gain);
      pen.fillText(data.leads[piece.lead], start + piece.at * speed + 0.8, base - 0.55 * tall + 4);
    }
  });
}

function grid(pen, width, height, step, color, line) {
  pen.strokeStyle = color;
  pen.lineWidth = line;
  pen.beginPath();
  for (let x = 0; x <= width; x += step) pen.rect(x, 0, 0, height);
  for (let y = 0; y <= height; y += step) pen.rect(0, y, width, 0);
  pen.stroke();
}

function pulse(pen, x, base, speed, gain) {
  const [from, to] = [x + 0.05 * speed, x + PULSE * speed];
  pen.beginPath();
  for (const [px, py] of [
    [x, base],
    [from, base],
    [from, base - gain],
    [to, base - gain],
    [to, base],
    [to + 0.05 * speed, base],
  ])
    pen.lineTo(px, py);
  pen.stroke();
}

function trace(pen, data, piece, left, base, speed, gain) {
  const values = data.mv[piece.lead];
  const first = Math.round(piece.from * data.rate);
  const last = Math.min(values.length, Math.round((piece.from + piece.seconds) * data.rate));
  pen.beginPath();
  for (let i = first; i < last; i += 1) {
    if (Number.isFinite(values[i])) pen.lineTo(left + ((i - first) / data.rate) * speed, base - values[i] * gain);
  }
  pen.stroke();
}

// Elements from data. Values are inserted as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";
const ICONS = {
  search: "M10.5 4a6.5 6.5 0 1 0 0 13a6.5 6.5 0 0 0 0-13M15.5 15.5 21 21",
  close: "M5 5 19 19M19 5 5 19",
  plus: "M12 4V20M4 12H20",
  minus: "M4 12H20",
  left: "M15 4 7 12 15 20",
  right: "M9 4 17 12 9 20",
  file: "M6 3h8l5 5v13H6zM14 3v5h5",
  upload: "M12 16V4M7 9l5-5 5 5M4 15v5h16v-5",
  link: "M10 14l4-4M8.5 11 5.6 13.9a3.2 3.2 0 0 0 4.5 4.5L13 15.5M15.5 13l2.9-2.9a3.2 3.2 0 0 0-4.5-4.5L11 8.5",
  map: "M5 6h.01M18 5h.01M12 11h.01M6 17h.01M17 18h.01M15 13h.01M9 7h.01",
  fit: "M4 9V4h5M20 9V4h-5M4 15v5h5M20 15v5h-5",
  scale: "M4 6h16M4 12h11M4 18h6",
  alert: "M12 3 22 20H2zM12 9v5M12 17h.01",
  none: "M4 7h16M4 12h9M4 17h5",
};

/** An element with properties and children; `on` holds listeners, `vars` style properties, `data` its dataset. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") for (const [type, run] of Object.entries(value)) element.addEventListener(type, run);
    else if (name === "vars") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
}

/** A line drawing of 24 x 24 units; decoration only. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  for (const [key, value] of Object.entries({ viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" })) {
    svg.setAttribute(key, value);
  }
  svg.append(path);
  return svg;
}

/** A button with an icon; without `text`, `label` is its accessible name and its tooltip. */
export function button({ text, label, image, kind = "", press, ...rest }) {
  const name = text ? {} : { "aria-label": label, title: label };
  const props = { type: "button", class: `button ${kind} ${text ? "" : "square"}`, ...name, ...rest };
  return h("button", { ...props, on: press ? { click: press } : {} }, image ? icon(image) : null, text);
}

/** Zoom in, zoom out, and back to the whole `what`. */
export const zoomButtons = (what, closer, farther, whole) => [
  button({ label: "Zoom in", image: "plus", press: closer }),
  button({ label: "Zoom out", image: "minus", press: farther }),
  button({ label: `Whole ${what}`, image: "fit", press: whole }),
];

export const $ = (id) => document.getElementById(id);

/** Replace the children of an element. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter(Boolean));
}

/** Announce a text to screen readers. */
export function say(text) {
  const region = $("live");
  region.textContent = region.textContent === text ? `${text}\u00a0` : text;
}

/** A short message that disappears by itself. */
export function toast(text) {
  say(text);
  const box = h("div", { class: "toast", "aria-hidden": "true" }, text);
  document.body.append(box);
  setTimeout(() => box.remove(), 4000);
}

/** A name for people: "pleural_effusion|cardiomegaly" -> "pleural effusion, cardiomegaly". */
export const plain = (label) => String(label).replaceAll("_", " ").replaceAll("|", ", ");

/** A number with a true minus. */
export const signed = (number, digits = 2) => {
  const text = Math.abs(number).toFixed(digits);
  return (number < 0 ? "\u2212" : "+") + text;
};

export const percent = (number) => `${number.toFixed(1)}\u2009%`;

/** A rank within its modality from the percentage of items below it, in steps of the calibration's sample. */
export const top = (percentile) => `top ${percent(Math.max(100 - percentile, 0.2))}`;

export const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

/** The coloured dot of a modality. */
export const dot = (modality) => h("span", { class: "dot", "aria-hidden": "true", vars: { "--dot": modality.color } });

/** A share of 100 as a bar; the number stands beside it as text. */
export function bar(share, kind = "") {
  const width = `${Math.max(0, Math.min(100, share))}%`;
  return h("span", { class: `bar ${kind}`, "aria-hidden": "true" }, h("span", { vars: { width } }));
}

// Placeholders without content: loading, no results, errors.

import { button, h, icon, say } from "./dom.js";

/** A block of an icon, a heading, a text, and buttons. */
export function block({ image, title, text, role, actions = [] }) {
  return h(
    "div",
    { class: "state", role },
    h("span", { class: "state-icon" }, icon(image)),
    h("h2", {}, title),
    text ? h("p", {}, text) : null,
    actions.length ? h("div", { class: "actions" }, actions) : null,
  );
}

/** An error, and a button to try again. */
export function failure(error, retry, more = []) {
  const gone = error.code === "gone";
  return block({
    image: "alert",
    role: "alert",
    title: gone ? "The server does not answer" : "The request failed",
    text: error.message,
    actions: [retry ? button({ text: "Try again", kind: "primary", press: retry }) : null, ...more],
  });
}

/** The same in one line, for small places. */
export function smallFailure(error, retry) {
  const again = retry ? button({ text: "Try again", press: retry }) : null;
  return h("div", { class: "line-error", role: "alert" }, icon("alert"), h("span", {}, error.message), again);
}

/** Grey shapes of `n` cards. */
export function skeleton(n) {
  const shapes = Array.from({ length: n }, () =>
    h(
      "div",
      { class: "card shape" },
      h("div", { class: "shot" }),
      h("span", { class: "bone" }),
      h("span", { class: "bone short" }),
    ),
  );
  return h("div", { class: "cards", "aria-hidden": "true" }, shapes);
}

export const waiting = (text) => {
  say(text);
  return h("p", { class: "waiting" }, h("span", { class: "spinner", "aria-hidden": "true" }), text);
};

// The points of the map as a table, for screen readers.

import { button, dot, fill, h, plain } from "./dom.js";

const LINES = 25; // of a page

/** Columns `data` of points; `describe(i)` fetches the facts of one, `open(i)` shows it. */
export function table(data, { kinds, describe, open }) {
  const body = h("tbody");
  const where = h("span", { role: "status" });
  let from = 0;
  const turn = async (by) => {
    from = Math.max(0, Math.min(from + by, data.id.length - 1));
    const rows = data.id.slice(from, from + LINES).map((_, n) => from + n);
    where.textContent = `${from + 1} to ${from + rows.length} of ${data.id.length}`;
    fill(
      body,
      rows.map((i) => {
        const kind = kinds.find((one) => one.name === data.modality[i]);
        const label = h("td", {}, "…");
        describe(i).then((item) => {
          label.textContent = plain(item?.fields?.label ?? "");
        });
        return h(
          "tr",
          {},
          h("th", { scope: "row" }, dot(kind), kind.title),
          label,
          h("td", { class: "num" }, data.x[i].toFixed(2)),
          h("td", { class: "num" }, data.y[i].toFixed(2)),
          h(
            "td",
            {},
            button({ text: "Open", press: () => open(i), "aria-label": `Open point ${i + 1}, ${kind.title}` }),
          ),
        );
      }),
    );
  };
  const details = h(
    "details",
    { class: "panel" },
    h("summary", {}, "The points as a table"),
    h(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": "Points of the map" },
      h(
        "table",
        {},
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            ["Modality", "Label", "x", "y", "Item"].map((text, n) =>
              h("th", { scope: "col", class: n === 2 || n === 3 ? "num" : "" }, text),
            ),
          ),
        ),
        body,
      ),
    ),
    h(
      "div",
      { class: "pager" },
      button({ text: "Previous", image: "left", press: () => turn(-LINES) }),
      where,
      button({ text: "Next", image: "right", press: () => from + LINES < data.id.length && turn(LINES) }),
    ),
  );
  details.addEventListener("toggle", () => details.open && !body.children.length && turn(0));
  return details;
}

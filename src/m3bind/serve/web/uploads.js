// Files sent to the service, which stores them in memory for a while and returns an id for each.

import { ApiError, call } from "./api.js";
import { grouped } from "./files.js";
import { button, fill, h, icon, plural } from "./dom.js";

const notes = new Map(); // upload id -> warnings and steps of its reading

/** Warnings and steps of an upload of this visit. */
export const notesOf = (id) => notes.get(id) ?? { warnings: [], steps: [] };

async function send(files, modality, about) {
  const bytes = files.reduce((sum, file) => sum + file.size, 0);
  const most = about.limits?.body_bytes ?? Infinity;
  if (bytes > most) {
    const size = (n) => `${(n / 2 ** 20).toFixed(1)} MB`;
    throw new ApiError("size", `This is ${size(bytes)}; the server accepts at most ${size(most)} at once.`, 413);
  }
  const form = new FormData();
  for (const file of files) form.append("file", file, file.name);
  if (modality) form.append("modality", modality);
  const made = await call("api/uploads", { form });
  notes.set(made.id, { warnings: made.warnings ?? [], steps: made.steps ?? [] });
  return made;
}

/**
 * Send files and show the progress in `list`, one line for each item.
 *
 * A line with an error stays: there the user can choose the modality, or send the files one by one.
 */
export function upload(files, { list, about, done }) {
  for (const group of grouped(files)) attempt(group, { list, about, done });
}

async function attempt(files, { list, about, done, modality = "", line = h("li", { class: "sending" }) }) {
  const what = files.length > 1 ? plural(files.length, "file") : "A file";
  fill(
    line,
    h("span", { class: "spinner", "aria-hidden": "true" }),
    h("span", { role: "status" }, `${what}: being read …`),
  );
  list.append(line);
  try {
    const made = await send(files, modality, about);
    line.remove();
    done(made);
  } catch (error) {
    const again = (name) => attempt(files, { list, about, done, modality: name, line });
    const choice = h(
      "select",
      { "aria-label": "Read it as", on: { change: () => again(choice.value) } },
      h("option", { value: "" }, "Read it as …"),
      about.modalities.map((kind) => h("option", { value: kind.name }, kind.title)),
    );
    const single = () => {
      line.remove();
      for (const file of files) attempt([file], { list, about, done });
    };
    fill(
      line,
      icon("alert"),
      h("span", { role: "alert", class: "grow" }, `${what}: ${error.message}`),
      error.status === 413 ? null : choice,
      files.length > 1 && error.status !== 413 ? button({ text: "One by one", press: single }) : null,
      button({ text: "Try again", press: () => again(modality) }),
      button({ label: "Discard", image: "close", press: () => line.remove() }),
    );
    line.classList.add("failed");
  }
}

// Files that were dropped, pasted or picked, grouped into items.

const MAX_FILES = 2000; // of one drop
const HEADERS = ["hea", "hdr", "mhd"]; // headers of files with the same name

/** The files of a drop; folders are walked through. */
export async function dropped(transfer) {
  const entries = [...transfer.items].filter((item) => item.kind === "file").map((item) => item.webkitGetAsEntry?.());
  if (!entries.some((entry) => entry?.isDirectory)) return [...transfer.files];
  const files = [];
  for (const entry of entries) if (entry) await walk(entry, files);
  return files;
}

async function walk(entry, files) {
  if (files.length >= MAX_FILES) return;
  if (entry.isFile) {
    files.push(await new Promise((done, failed) => entry.file(done, failed)));
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const batch = await new Promise((done, failed) => reader.readEntries(done, failed));
    if (!batch.length) return;
    for (const child of batch) await walk(child, files);
  }
}

/** Groups of files: the slices of a series, a header and its data, or a file alone. */
export function grouped(files) {
  const parts = files.map((file) => ({ file, ...named(file.name) }));
  const headers = new Set(parts.filter((part) => HEADERS.includes(part.ending)).map((part) => part.stem));
  const groups = new Map();
  for (const part of parts) {
    const key = headers.has(part.stem) ? `record ${part.stem}` : part.slice ? "slices" : `file ${groups.size}`;
    groups.set(key, [...(groups.get(key) ?? []), part.file]);
  }
  return [...groups.values()];
}

function named(name) {
  const match = name.match(/^(.+)\.([A-Za-z][A-Za-z0-9]*)$/);
  const [stem, ending] = match ? [match[1], match[2].toLowerCase()] : [name, ""];
  return { stem, ending, slice: ending === "" || ending === "dcm" || ending === "ima" };
}

/** Call `take(files)` for pasted files and those dropped anywhere on the page, unless `busy()`. */
export function watchFiles(take, busy) {
  let depth = 0;
  const shade = (on) => document.body.classList.toggle("dropping", on);
  const brings = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => {
    if (!brings(event) || busy()) return;
    depth += 1;
    shade(true);
  });
  addEventListener("dragleave", (event) => {
    if (!brings(event)) return;
    depth = Math.max(0, depth - 1);
    if (!depth) shade(false);
  });
  addEventListener("dragover", (event) => {
    if (brings(event)) event.preventDefault();
  });
  addEventListener("drop", async (event) => {
    if (!brings(event)) return;
    event.preventDefault();
    depth = 0;
    shade(false);
    if (busy()) return;
    const files = await dropped(event.dataTransfer);
    if (files.length) take(files);
  });
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length || busy()) return;
    event.preventDefault();
    take(files);
  });
}

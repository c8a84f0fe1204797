// The page: fetches the description of the service, then starts the tabs.

import { call } from "./api.js";
import { startDetail } from "./detail.js";
import { $, fill } from "./dom.js";
import { watchFiles } from "./files.js";
import { startFilters } from "./filters.js";
import { startLogin } from "./login.js";
import { startMap } from "./map.js";
import { startQuery, takeFiles } from "./query.js";
import { startSearch } from "./search.js";
import { failure, waiting } from "./states.js";
import * as store from "./store.js";
import { startZeroShot, takeZeroFiles } from "./zeroshot.js";

const TITLES = { search: "Search", map: "Map", "zero-shot": "Zero-shot" };

async function start() {
  fill($("start"), waiting("Starting …"));
  try {
    const about = await call("api/about");
    $("start").hidden = true;
    introduce(about);
    startTabs();
    startQuery(about);
    startFilters(about);
    startSearch(about);
    startDetail(about);
    startMap(about);
    startZeroShot(about);
    watchFiles(take, () => Boolean(document.querySelector("dialog[open]")));
    document.body.classList.add("ready");
  } catch (error) {
    fill($("start"), failure(error, start));
  }
}

function introduce(about) {
  $("synthetic").hidden = !about.synthetic;
  const [head, ...rest] = (about.notice ?? "").split(/(?<=\.)\s+/);
  if (head) {
    $("notice-head").textContent = head;
    $("notice").textContent = rest.join(" ");
  }
  $("version").textContent = `m3bind ${about.version}`;
  document.body.classList.toggle("no-items", !about.items);
}

function take(files) {
  if (store.get().tab === "zero-shot") takeZeroFiles(files);
  else {
    store.set({ tab: "search" });
    takeFiles(files);
  }
}

function startTabs() {
  const tabs = [...document.querySelectorAll("[role=tab]")];
  for (const [at, tab] of tabs.entries()) {
    tab.addEventListener("click", () => store.set({ tab: tab.dataset.tab, open: null }));
    tab.addEventListener("keydown", (event) => {
      const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
      if (next === undefined) return;
      event.preventDefault();
      const target = tabs[(next + tabs.length) % tabs.length];
      target.click();
      target.focus();
    });
  }
  const draw = ({ tab: name }) => {
    for (const tab of tabs) {
      const on = tab.dataset.tab === name;
      tab.setAttribute("aria-selected", String(on));
      tab.tabIndex = on ? 0 : -1;
      $(tab.getAttribute("aria-controls")).hidden = !on;
    }
    document.title = `${TITLES[name]} – m3bind`;
  };
  store.watch(draw);
  draw(store.get());
}

function watchKeys() {
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (/^(input|select|textarea)$/i.test(event.target.tagName)) {
      if (event.key === "ArrowDown" && event.target === $("q")) firstHit(event);
      return;
    }
    if (event.key === "/") {
      event.preventDefault();
      store.set({ tab: "search" });
      $("q").focus();
      $("q").select();
    } else if (event.key === "?") $("keys").showModal();
  });
}

function firstHit(event) {
  const card = document.querySelector("#results .card-open, #results .example");
  if (!card) return;
  event.preventDefault();
  card.focus();
}

$("keys-open").addEventListener("click", () => $("keys").showModal());
$("keys").addEventListener("click", (event) => event.target === $("keys") && $("keys").close());
startLogin();
watchKeys();
start();

// The token of the service, asked for when it answers 401. It goes into a cookie that scripts cannot read.

import { call, onTokenNeeded } from "./api.js";
import { $ } from "./dom.js";

let waiting = null;

/** Ask for the token whenever the service wants one. */
export function startLogin() {
  const dialog = $("login");
  dialog.addEventListener("cancel", (event) => event.preventDefault());
  onTokenNeeded(() => {
    waiting ??= new Promise((done) => {
      $("login-error").textContent = "";
      if (!dialog.open) dialog.showModal();
      $("token").focus();
      dialog.done = done;
    });
    return waiting;
  });
  $("login-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    $("login-error").textContent = "";
    try {
      await call("api/login", { json: { token: $("token").value }, again: false });
    } catch (error) {
      $("login-error").textContent =
        error.status === 401
          ? "The server does not know this token. m3bind serve printed the right one when it started, or it was set by whoever runs it."
          : error.message;
      $("token").select();
      return;
    }
    $("token").value = "";
    dialog.close();
    waiting = null;
    dialog.done();
  });
}

// The login with the token, shown when the service answers 401. It sets a cookie that scripts cannot read.

import { call, onTokenNeeded } from "./api.js";
import { $ } from "./dom.js";

let waiting = null;

/** Show the dialog whenever the service needs a token. */
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
          ? "This is not the token of the server. m3bind serve printed it at the start, or its operator has set it."
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

// Calls of the service; every failure becomes an ApiError with what happened and what to do.

const ROOT = new URL("..", import.meta.url);
const PATIENCE = 120000; // milliseconds

export class ApiError extends Error {
  constructor(code, message, status = 0) {
    super(message);
    this.code = code;
    this.status = status;
  }
}

let askForToken = null;

/** Set the function to call on a 401; it resolves after the login. */
export function onTokenNeeded(run) {
  askForToken = run;
}

export const address = (path) => new URL(path, ROOT).href;

/** Send a request: GET, or POST with a body. */
export async function call(path, { json, form, signal, again = true } = {}) {
  const options = { signal: AbortSignal.any([AbortSignal.timeout(PATIENCE), ...(signal ? [signal] : [])]) };
  if (json !== undefined)
    Object.assign(options, { body: JSON.stringify(json), headers: { "Content-Type": "application/json" } });
  if (form) options.body = form;
  if (options.body) options.method = "POST";
  let response;
  try {
    response = await fetch(address(path), { credentials: "same-origin", ...options });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw error.name === "TimeoutError"
      ? new ApiError("slow", "The server took too long. Try again, or request less at once.")
      : new ApiError("gone", "The server does not answer. Check whether m3bind serve is still running, then try again.");
  }
  if (response.status === 401 && again && askForToken) {
    await askForToken();
    return call(path, { json, form, signal, again: false });
  }
  const body = response.status === 204 ? {} : await response.json().catch(() => null);
  if (response.ok && body !== null) return body;
  const message = body?.error?.message ?? `The server answered with status ${response.status}. Try again.`;
  throw new ApiError(body?.error?.code ?? "status", message, response.status);
}

/** The address of an item or upload: its "thumbnail", "picture", "signal", "texts" or "" for itself. */
export function place(source, what = "", options = {}) {
  const root = `api/${source.kind}s/${encodeURIComponent(source.value)}`;
  const values = Object.entries(options).filter(([, value]) => value !== undefined && value !== null);
  const query = values.length ? `?${new URLSearchParams(values)}` : "";
  return `${root}${what ? `/${what}` : ""}${query}`;
}

export const pictureOf = (source, what, options) => address(place(source, what, options));

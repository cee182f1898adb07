// How is the server asked? Every request goes to the server that the page came from, with the key if it wants one.

const PLACE = "dure-key";

let asking = null; // what asks a person for the key; one at a time

export class ServerError extends Error {
  constructor(message, status, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

function key() {
  return sessionStorage.getItem(PLACE) ?? localStorage.getItem(PLACE);
}

export function keepKey(text, isForEver) {
  sessionStorage.removeItem(PLACE);
  localStorage.removeItem(PLACE);
  (isForEver ? localStorage : sessionStorage).setItem(PLACE, text);
}

export function forgetKey() {
  sessionStorage.removeItem(PLACE);
  localStorage.removeItem(PLACE);
}

export const hasKey = () => key() !== null;

// `ask` shows a person why a key is needed, and returns whether they gave one.
let askForKey = async () => false;
export function setKeyDialog(ask) {
  askForKey = ask;
}

// Ask the server; returns the response. Throws ServerError with the server's own words.
export async function request(path, { body, signal, method } = {}) {
  for (;;) {
    const used = key();
    const headers = { accept: "application/json" };
    if (used !== null) headers.authorization = `Bearer ${used}`;
    if (body !== undefined) headers["content-type"] = "application/json";
    let response;
    try {
      response = await fetch(new URL(path, document.baseURI), {
        method: method ?? (body === undefined ? "GET" : "POST"),
        headers,
        body: body === undefined ? undefined : JSON.stringify(body),
        signal,
        cache: "no-store",
        credentials: "omit",
        redirect: "error",
      });
    } catch (error) {
      if (error.name === "AbortError" || error.name === "TimeoutError") throw error;
      throw new ServerError("The server does not answer.", 0);
    }
    if (response.ok) return response;
    const said = await saidBy(response);
    if (response.status !== 401) throw said;
    if (key() !== used) continue; // another request was given one meanwhile
    asking ??= askForKey(used === null ? "" : said.message).finally(() => (asking = null));
    if (!(await asking)) throw said;
  }
}

export async function getJson(path, options = {}) {
  return (await request(path, options)).json();
}

export async function postJson(path, body, options = {}) {
  return (await request(path, { ...options, body })).json();
}

async function saidBy(response) {
  const retry = Number(response.headers.get("retry-after"));
  let message = `The server answered with status ${response.status}.`;
  try {
    const said = await response.json();
    message = said.error?.message ?? said.error ?? message;
  } catch {
    // not one of ours: a proxy's page, or nothing
  }
  return new ServerError(String(message), response.status, Number.isFinite(retry) && retry > 0 ? retry : null);
}

// What does the API take? Every operation of /openapi.json, its fields, and a line for curl.

import { getJson } from "./api.js";
import { byId, copyButton, h, visible } from "./dom.js";
import { useKeyDialog } from "./keydialog.js";
import { useTheme } from "./theme.js";

const MAX_DEPTH = 4; // of a type that is written out

function resolve(schema, whole) {
  const name = schema?.$ref?.split("/").pop();
  return name === undefined ? schema : { ...whole.components.schemas[name], title: name };
}

// A schema as a few words: "text or null", "list of objects".
function typeOf(schema, whole, depth = 0) {
  if (schema === undefined || depth > MAX_DEPTH) return "anything";
  if (schema.$ref) return schema.$ref.split("/").pop();
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return [...new Set(choices.map((each) => typeOf(each, whole, depth + 1)))].join(" or ");
  if (schema.enum) return schema.enum.map((each) => JSON.stringify(each)).join(", ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.type === "array") return `list of ${typeOf(schema.items, whole, depth + 1)}`;
  return schema.type ?? "anything";
}

function bounds(schema) {
  const all = [schema, ...(schema.anyOf ?? [])];
  const of = (name) => all.find((each) => each[name] !== undefined)?.[name];
  const parts = [];
  const [least, most] = [of("minimum"), of("maximum")];
  if (least !== undefined || most !== undefined) parts.push(`${least ?? ""} to ${most ?? ""}`);
  if (of("maxLength") !== undefined) parts.push(`at most ${of("maxLength")} characters`);
  if (of("maxItems") !== undefined) parts.push(`at most ${of("maxItems")}`);
  return parts.join(", ");
}

function fields(shape, whole) {
  const required = new Set(shape.required ?? []);
  const rows = Object.entries(shape.properties ?? {}).map(([name, schema]) =>
    h(
      "tr",
      {},
      h("td", {}, h("code", {}, ...visible(name)), required.has(name) ? " (required)" : ""),
      h("td", {}, ...visible(typeOf(schema, whole))),
      h("td", {}, ...visible(bounds(schema))),
    ),
  );
  const head = h("tr", {}, ...["Field", "Type", "Bounds"].map((name) => h("th", { scope: "col" }, name)));
  return h("div", { class: "wide", tabindex: "0" }, h("table", {}, h("thead", {}, head), h("tbody", {}, ...rows)));
}

function example(method, path, shape) {
  const address = new URL(path.replace(/^\//, ""), document.baseURI).href;
  if (method === "get") return `curl ${address}`;
  if (shape === undefined) return `curl -X ${method.toUpperCase()} ${address}`;
  const said = [{ role: "user", content: "Hello!" }];
  const known = { messages: said, prompt: "Hello!", input: "Hello!", model: "MODEL", max_tokens: 100 };
  const names = [...(shape.required ?? []), "messages", "prompt", "input"].filter((name) => shape.properties?.[name]);
  const body = {};
  for (const name of names) {
    if (Object.keys(body).some((each) => ["messages", "prompt", "input"].includes(each)) && !shape.required?.includes(name)) continue;
    body[name] = known[name] ?? null;
  }
  return `curl ${address} -d '${JSON.stringify(body)}'`;
}

function operation(method, path, value, whole) {
  const shape = resolve(value.requestBody?.content?.["application/json"]?.schema, whole);
  const line = example(method, path, shape);
  const [first = ""] = (value.description ?? "").split("\n");
  return h(
    "details",
    { class: "operation", "data-words": `${path} ${first} ${Object.keys(shape?.properties ?? {}).join(" ")}`.toLowerCase() },
    h("summary", {}, h("span", { class: "method" }, method.toUpperCase()), h("code", {}, ...visible(path)), " ", ...visible(first)),
    h("p", {}, ...visible((value.description ?? "").split("\n").slice(1).join("\n").trim())),
    h("pre", { tabindex: "0" }, h("code", {}, ...visible(line))),
    copyButton(() => line),
    shape === undefined ? null : fields(shape, whole),
  );
}

function filter() {
  const wanted = byId("filter").value.trim().toLowerCase();
  for (const each of document.querySelectorAll(".operation")) each.hidden = !each.dataset.words.includes(wanted);
}

async function show() {
  const whole = await getJson("openapi.json");
  const found = [];
  for (const [path, methods] of Object.entries(whole.paths)) {
    if (!path.startsWith("/v1/") && whole.paths[`/v1${path}`]) continue; // the same, without /v1
    for (const [method, value] of Object.entries(methods)) found.push(operation(method, path, value, whole));
  }
  byId("operations").replaceChildren(...found);
  byId("operations").setAttribute("aria-busy", "false");
}

useTheme();
useKeyDialog();
byId("filter").addEventListener("input", filter);
show().catch((error) => {
  byId("trouble").textContent = error.message;
  byId("trouble").hidden = false;
});

// Is this file one of our exports? Everything in it is checked, and what is unknown is left out.

import { newId, VERSION } from "./conversation.js";
import { cleanSettings } from "./parameters.js";

const FORMAT = "dure-chat";
const MAX_BYTES = 200_000_000;
const MAX_NODES = 20_000;
const MAX_TEXT = 8_000_000;

export function exported(conversations) {
  return JSON.stringify({ format: FORMAT, version: VERSION, exported: new Date().toISOString(), conversations }, null, 1);
}

// The conversations of an export. Throws an Error with a sentence if it is none.
export function imported(text) {
  if (text.length > MAX_BYTES) throw new Error("The file is larger than 200 MB.");
  let whole;
  try {
    whole = JSON.parse(text);
  } catch {
    throw new Error("The file is not JSON: it is no export of this page.");
  }
  if (whole?.format !== FORMAT || !Array.isArray(whole.conversations)) {
    throw new Error("The file is no export of this page.");
  }
  if (whole.version !== VERSION) throw new Error(`The export has version ${whole.version}; this page reads ${VERSION}.`);
  return whole.conversations.map(conversation);
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const isId = (value) => typeof value === "string" && /^[0-9a-f]{1,64}$/.test(value);
const text = (value, most = MAX_TEXT) => (typeof value === "string" ? value.slice(0, most) : "");
const number = (value) => (Number.isFinite(value) ? value : undefined);
const time = (value) => Math.min(number(value) ?? 0, Date.now());

function conversation(value) {
  if (!isObject(value) || !isObject(value.nodes)) throw new Error("A conversation of the file is damaged.");
  const entries = Object.values(value.nodes);
  if (entries.length > MAX_NODES) throw new Error(`A conversation has more than ${MAX_NODES} messages.`);
  const nodes = {};
  for (const each of entries) {
    if (!isObject(each) || !isId(each.id) || !["user", "assistant"].includes(each.role)) {
      throw new Error("A message of the file is damaged.");
    }
    nodes[each.id] = message(each);
  }
  for (const node of Object.values(nodes)) if (!Object.hasOwn(nodes, node.parent ?? "")) node.parent = null;
  const leaf = isId(value.leaf) && Object.hasOwn(nodes, value.leaf) ? value.leaf : Object.keys(nodes).at(-1) ?? null;
  return {
    id: isId(value.id) ? value.id : newId(),
    title: text(value.title, 200),
    created: time(value.created),
    updated: time(value.updated),
    settings: cleanSettings(value.settings),
    nodes,
    leaf,
  };
}

function message(value) {
  const list = (entries, read) => (Array.isArray(entries) ? entries.filter(isObject).slice(0, 128).map(read) : undefined);
  return {
    id: value.id,
    parent: isId(value.parent) && value.parent !== value.id ? value.parent : null,
    role: value.role,
    created: time(value.created),
    updated: time(value.updated),
    content: text(value.content),
    reasoning: text(value.reasoning) || undefined,
    thought: number(value.thought),
    model: text(value.model, 512) || undefined,
    finish: text(value.finish, 64) || undefined,
    error: text(value.error, 2000) || undefined,
    files: list(value.files, (file) => ({ name: text(file.name, 300), text: text(file.text) })),
    calls: list(value.calls, (call) => ({
      id: text(call.id, 200),
      name: text(call.name, 200),
      text: text(call.text),
      result: typeof call.result === "string" ? text(call.result) : undefined,
    })),
    figures: figures(value.figures),
  };
}

// Numbers and short words under their names, as the server gave them.
function figures(value) {
  if (!isObject(value)) return undefined;
  const kept = Object.entries(value).slice(0, 40).filter(([, each]) => number(each) !== undefined || typeof each === "string");
  return Object.fromEntries(kept.map(([name, each]) => [name.slice(0, 60), typeof each === "string" ? each.slice(0, 60) : each]));
}

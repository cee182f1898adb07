// What was said, and along which branch? A tree of messages: an edit or a new answer is a sibling.
// These are values that are stored as they are; nothing here knows the page.

export const VERSION = 1;
const MAX_TITLE = 80;

export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function newConversation(settings = {}) {
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, settings: { ...settings }, nodes: {}, leaf: null };
}

// Add a message below `parent` (null: at the top), and make it the end of what is shown.
export function addNode(conversation, parent, message) {
  const now = Date.now();
  const node = { id: newId(), parent, created: now, updated: now, role: "user", content: "", ...message };
  conversation.nodes[node.id] = node;
  conversation.leaf = node.id;
  conversation.updated = now;
  if (!conversation.title && node.role === "user") {
    conversation.title = (node.content || node.files?.[0]?.name || "").replace(/\s+/g, " ").trim().slice(0, MAX_TITLE);
  }
  return node;
}

// The messages of the branch that is shown, from the first to the last.
export function path(conversation) {
  const found = [];
  const seen = new Set();
  for (let id = conversation.leaf; id !== null && !seen.has(id); ) {
    const node = conversation.nodes[id];
    if (node === undefined) break;
    seen.add(id);
    found.push(node);
    id = node.parent;
  }
  return found.reverse();
}

// The messages that stand in the same place as this one, itself too, the oldest first.
export function siblings(conversation, node) {
  return Object.values(conversation.nodes)
    .filter((each) => each.parent === node.parent)
    .sort((one, other) => one.created - other.created || (one.id < other.id ? -1 : 1));
}

// Show the branch of this message, down to where it was last talked on.
export function show(conversation, node) {
  const children = new Map();
  for (const each of Object.values(conversation.nodes)) {
    const newest = children.get(each.parent);
    if (newest === undefined || each.created >= newest.created) children.set(each.parent, each);
  }
  let end = node;
  for (let steps = 0; children.has(end.id) && steps < 100_000; steps += 1) end = children.get(end.id);
  conversation.leaf = end.id;
}

// The messages as the API takes them: files are part of the text, a call's result is a message of its own.
export function apiMessages(conversation, until) {
  const system = conversation.settings.system?.trim();
  const found = system ? [{ role: "system", content: system }] : [];
  const nodes = path({ ...conversation, leaf: until });
  const lastUser = nodes.findLastIndex((node) => node.role === "user");
  nodes.forEach((node, place) => {
    if (node.role === "assistant") {
      const message = { role: "assistant", content: node.content };
      if (node.calls?.length) {
        message.tool_calls = node.calls.map(({ id, name, text }) => ({
          id,
          type: "function",
          function: { name, arguments: text },
        }));
      }
      if (node.reasoning && place > lastUser) message.reasoning_content = node.reasoning;
      found.push(message);
      for (const call of node.calls ?? []) {
        if (place < nodes.length - 1 || call.result !== undefined) {
          found.push({ role: "tool", tool_call_id: call.id, content: call.result ?? "" });
        }
      }
    } else if (node.role === "user") {
      found.push({ role: "user", content: textOf(node) });
    }
  });
  return found;
}

// A person's message with the files that were dropped on it, each fenced by more marks than it holds.
export function textOf(node) {
  const files = (node.files ?? []).map(({ name, text }) => {
    const longest = Math.max(2, ...(text.match(/`+/g) ?? []).map((run) => run.length));
    const fence = "`".repeat(longest + 1);
    return `File ${name}:\n${fence}\n${text}\n${fence}`;
  });
  return [...files, node.content].filter(Boolean).join("\n\n");
}

// Both, where two tabs have changed one conversation: of each message the one that was changed last.
export function merged(stored, mine) {
  if (stored === undefined) return mine;
  const nodes = { ...stored.nodes };
  for (const [id, node] of Object.entries(mine.nodes)) {
    if (nodes[id] === undefined || nodes[id].updated <= node.updated) nodes[id] = node;
  }
  return { ...mine, nodes, created: Math.min(stored.created, mine.created) };
}

export function asMarkdown(conversation) {
  const parts = path(conversation).map((node) => {
    const name = node.role === "user" ? "You" : node.model || "Assistant";
    const calls = (node.calls ?? []).map((call) => `Calls \`${call.name}\` with ${call.text}`);
    return [`## ${name}`, node.role === "user" ? textOf(node) : node.content, ...calls].filter(Boolean).join("\n\n");
  });
  return `# ${conversation.title || "Conversation"}\n\n${parts.join("\n\n")}\n`;
}

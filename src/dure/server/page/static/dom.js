// How are nodes made? Texts go in as text nodes: nothing here, or anywhere else, makes HTML of a string.

const HIDDEN = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/u;
const HIDDEN_RUN = /([\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069])/u;
const SCHEMES = ["http:", "https:", "mailto:"];

// Make an element. Properties are attributes; those that begin with "on" are listeners, and those
// that are true or false are switches. Children are nodes, texts, or null for nothing.
export function h(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean") node.toggleAttribute(name, value);
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

export function button(label, onclick, properties = {}) {
  return h("button", { type: "button", ...properties, onclick }, label);
}

export const byId = (id) => document.getElementById(id);

// A text as nodes. Characters that cannot be seen, or that turn the direction of others, are shown.
export function visible(text) {
  if (!HIDDEN.test(text)) return [document.createTextNode(text)];
  return text.split(HIDDEN_RUN).filter(Boolean).map((part) => {
    if (part.length > 1 || !HIDDEN.test(part)) return document.createTextNode(part);
    const code = part.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    return h("span", { class: "control", title: "a control character" }, `U+${code}`);
  });
}

// The address that a link may have: an absolute one, of the web or a mailbox, that names no user; or null.
export function safeAddress(text) {
  let address;
  try {
    address = new URL(text.trim());
  } catch {
    return null;
  }
  if (!SCHEMES.includes(address.protocol) || address.username || address.password) return null;
  return address.href;
}

export function link(address, ...children) {
  const rel = "noopener noreferrer nofollow";
  return h("a", { href: address, title: address, target: "_blank", rel }, ...children);
}

// Copy a text; returns whether that worked. Pages without TLS, on other machines, have no clipboard.
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = h("textarea", { class: "unseen", "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

// A button that copies what `text` returns, and says so.
export function copyButton(text, label = "Copy") {
  const made = button(label, async () => {
    made.textContent = (await copyText(text())) ? "Copied" : "Not copied";
    announce(made.textContent);
    setTimeout(() => (made.textContent = label), 1500);
  });
  made.className = "copy";
  return made;
}

// Let a screen reader say something.
export function announce(text) {
  const place = byId("announcer");
  if (place !== null) place.textContent = text;
}

export function save(name, type, text) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const anchor = h("a", { href: address, download: name });
  document.body.append(anchor);
  anchor.click();
  anchor.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

// What is a person asked in a window of its own? The browser holds the focus in it, and Escape cancels.

import { h, button } from "./dom.js";

// Show a dialog of these nodes. Resolves to true when it is agreed to, and to false otherwise.
export function dialog(title, nodes, { agree = "OK", isDangerous = false, cancel = "Cancel" } = {}) {
  return new Promise((resolve) => {
    const end = (value) => {
      window.close();
      window.remove();
      resolve(value);
    };
    const heading = h("h2", { id: `title-${Math.random().toString(36).slice(2)}` }, title);
    const yes = h("button", { type: "submit", class: isDangerous ? "danger" : "main" }, agree);
    const buttons = h("div", { class: "buttons" }, cancel === null ? null : button(cancel, () => end(false)), yes);
    const form = h("form", {}, heading, ...nodes, buttons);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      end(true);
    });
    const window = h("dialog", { "aria-labelledby": heading.id }, form);
    window.addEventListener("cancel", (event) => {
      event.preventDefault();
      end(false);
    });
    document.body.append(window);
    window.showModal();
  });
}

export function field(label, input, hint = "") {
  return h("label", { class: "field" }, h("span", {}, label), input, hint ? h("small", {}, hint) : null);
}

export function tell(title, ...sentences) {
  return dialog(title, sentences.map((each) => h("p", {}, each)), { cancel: null });
}

// A line of text, or null.
export async function askText(title, label, value) {
  const input = h("input", { type: "text", maxlength: "200" });
  input.value = value;
  setTimeout(() => input.select());
  return (await dialog(title, [field(label, input)])) ? input.value.trim() : null;
}

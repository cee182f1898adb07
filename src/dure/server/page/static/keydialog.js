// Which key does the server want? Asked when it answers 401; kept in this browser if the person says so.

import { keepKey, setKeyDialog } from "./api.js";
import { dialog, field } from "./dialogs.js";
import { h } from "./dom.js";

export function useKeyDialog() {
  setKeyDialog(async (refused) => {
    const input = h("input", { type: "password", autocomplete: "off", required: true, spellcheck: "false" });
    const stay = h("input", { type: "checkbox" });
    const why = refused ? `The server refused it: ${refused}` : "This server needs an API key.";
    const keep = h("label", { class: "check" }, stay, "Keep it in this browser");
    const isGiven = await dialog("API key", [h("p", {}, why), field("Key", input), keep], { agree: "Use it" });
    if (!isGiven || !input.value.trim()) return false;
    keepKey(input.value.trim(), stay.checked);
    return true;
  });
}

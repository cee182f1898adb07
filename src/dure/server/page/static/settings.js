// What is set for a conversation: the system prompt, sampling, effort, and tools?

import { dialog, field } from "./dialogs.js";
import { h } from "./dom.js";
import { cleanSettings, EFFORTS, NUMBERS, readTools } from "./parameters.js";

// Ask for settings. Returns { settings, isDefault }, or null where nothing is to change.
export async function askSettings(now) {
  const system = h("textarea", { rows: "5", dir: "auto", id: "system-prompt" });
  system.value = now.system ?? "";
  const numbers = NUMBERS.map(([name, label, , least, most, step]) => {
    const shape = { type: "number", min: String(least), max: String(most), step: String(step) };
    const input = h("input", { ...shape, placeholder: "the model's", inputmode: "decimal" });
    input.value = now[name] ?? "";
    return { name, label, input };
  });
  const effort = h("select", {}, h("option", { value: "" }, "the model's"), ...EFFORTS.map((each) => h("option", { value: each }, each)));
  effort.value = now.effort ?? "";
  const tools = h("textarea", { rows: "4", spellcheck: "false", class: "code-input" });
  tools.value = now.tools ?? "";
  tools.addEventListener("input", () => {
    try {
      readTools(tools.value);
      tools.setCustomValidity("");
    } catch (error) {
      tools.setCustomValidity(error.message);
    }
  });
  const stay = h("input", { type: "checkbox" });
  const nodes = [
    field("System prompt", system),
    h("div", { class: "grid" }, ...numbers.map(({ label, input }) => field(label, input)), field("Reasoning effort", effort)),
    field("Tools", tools, "A JSON list of functions. The page shows what the model calls; you write the results."),
    h("label", { class: "check" }, stay, "Use these for new conversations, too"),
  ];
  if (!(await dialog("Settings", nodes, { agree: "Save" }))) return null;
  const given = { ...now, system: system.value, tools: tools.value, effort: effort.value };
  for (const { name, input } of numbers) given[name] = input.value === "" ? undefined : Number(input.value);
  return { settings: cleanSettings(given), isDefault: stay.checked };
}

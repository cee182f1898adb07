// What may be set of an answer, within which bounds, and by which field of the API?

// name, label, field of the API, least, most, step; all are left to the model where they are empty
export const NUMBERS = [
  ["temperature", "Temperature", "temperature", 0, 2, 0.05],
  ["topP", "Top p", "top_p", 0, 1, 0.01],
  ["topK", "Top k", "top_k", -1, 1000, 1],
  ["minP", "Min p", "min_p", 0, 1, 0.01],
  ["repetition", "Repetition penalty", "repetition_penalty", 0.5, 2, 0.01],
  ["presence", "Presence penalty", "presence_penalty", -2, 2, 0.05],
  ["maxTokens", "Most tokens of an answer", "max_tokens", 1, 1_000_000, 1],
  ["seed", "Seed", "seed", 0, 2 ** 31, 1],
];
export const EFFORTS = ["low", "medium", "high"];

// Steps of the slider: tokens of thinking at most. 0 is not to think, the last is no limit.
export const BUDGETS = [0, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, null];
const MAX_PROMPT = 1_000_000;

export function budgetLabel(step) {
  const budget = BUDGETS[step];
  if (budget === null || budget === undefined) return "no limit";
  return budget === 0 ? "off" : `${budget.toLocaleString("en")} tokens`;
}

// Only what is known, and of the right kind.
export function cleanSettings(value) {
  const given = typeof value === "object" && value !== null ? value : {};
  const kept = {};
  for (const name of ["system", "tools"]) {
    if (typeof given[name] === "string" && given[name]) kept[name] = given[name].slice(0, MAX_PROMPT);
  }
  for (const [name, , , least, most] of NUMBERS) {
    const number = given[name];
    if (Number.isFinite(number)) kept[name] = Math.min(most, Math.max(least, number));
  }
  if (EFFORTS.includes(given.effort)) kept.effort = given.effort;
  if (Number.isInteger(given.budget) && given.budget >= 0) kept.budget = given.budget;
  return kept;
}

// The fields of a request's body. Throws an Error with a sentence if the tools cannot be read.
export function apiFields(settings) {
  const fields = {};
  for (const [name, , field] of NUMBERS) if (settings[name] !== undefined) fields[field] = settings[name];
  if (settings.effort) fields.reasoning_effort = settings.effort;
  if (settings.budget !== undefined) fields.thinking_budget = settings.budget;
  const tools = readTools(settings.tools);
  if (tools.length) fields.tools = tools;
  return fields;
}

// A list of tools as OpenAI's API has them, or of their functions alone.
export function readTools(text) {
  if (!text?.trim()) return [];
  let tools;
  try {
    tools = JSON.parse(text);
  } catch (error) {
    throw new Error(`The tools are not JSON: ${error.message}`);
  }
  if (!Array.isArray(tools)) throw new Error("The tools must be a JSON list.");
  return tools.map((tool) => {
    const whole = tool?.type === "function" ? tool : { type: "function", function: tool };
    if (typeof whole.function?.name !== "string") throw new Error("A tool has no name.");
    return whole;
  });
}

// What did an answer take, and how is that said? Tokens, their speed, joules and money, where they are known.

const whole = new Intl.NumberFormat("en");

export const count = (number) => whole.format(number);

export function bytes(number) {
  for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (number >= size) return `${(number / size).toFixed(number >= 10 * size ? 0 : 1)} ${unit}`;
  }
  return `${number} bytes`;
}

export function seconds(number) {
  if (number < 10) return `${number.toFixed(1)} s`;
  if (number < 120) return `${Math.round(number)} s`;
  const minutes = Math.floor(number / 60);
  return minutes < 120 ? `${minutes} min ${Math.round(number % 60)} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function rate(number) {
  return number >= 100 ? count(Math.round(number)) : number.toFixed(1);
}

// The numbers that are kept with a message, of the `timings` and the `usage` that the server sent.
export function figuresOf(timings, usage) {
  const details = usage?.cost_details ?? {};
  const all = {
    prompt: usage?.prompt_tokens,
    cached: usage?.prompt_tokens_details?.cached_tokens,
    output: usage?.completion_tokens ?? timings?.predicted_n,
    reasoning: usage?.completion_tokens_details?.reasoning_tokens,
    promptRate: timings?.prompt_n ? timings.prompt_per_second : undefined,
    rate: timings?.predicted_per_second,
    joules: details.joules ?? timings?.joules,
    energy: details.energy ?? timings?.energy,
    processorSeconds: details.processor_seconds,
    cost: usage?.cost,
    currency: details.currency,
  };
  return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined && value !== null));
}

// One line: "123 tokens at 45.6/s · prompt 300 (256 cached) at 812/s · 12.3 J (rapl) · 0.00012 EUR"
export function figuresLine(figures) {
  const parts = [];
  const { output, prompt, joules, cost, energy } = figures;
  if (output !== undefined) {
    parts.push(`${count(output)} tokens${figures.rate ? ` at ${rate(figures.rate)}/s` : ""}`);
  }
  if (figures.reasoning) parts.push(`${count(figures.reasoning)} of thinking`);
  if (prompt !== undefined) {
    const cached = figures.cached ? ` (${count(figures.cached)} cached)` : "";
    const speed = figures.promptRate ? ` at ${rate(figures.promptRate)}/s` : "";
    parts.push(`prompt ${count(prompt)}${cached}${speed}`);
  }
  if (joules !== undefined) parts.push(`${joules.toPrecision(3)} J (${energy})`);
  else if (figures.processorSeconds) parts.push(`${seconds(figures.processorSeconds)} of processor`);
  if (cost !== undefined) parts.push(`${money(cost)} ${figures.currency ?? ""}`.trim());
  return parts.join(" · ");
}

export function money(amount) {
  return amount === 0 ? "0" : amount >= 0.01 ? amount.toFixed(4) : amount.toPrecision(3);
}

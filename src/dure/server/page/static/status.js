// What runs on this server? Asked every two seconds, while somebody looks.

import { getJson, request } from "./api.js";
import { byId, h, visible } from "./dom.js";
import { bytes, count, money, seconds } from "./figures.js";
import { useKeyDialog } from "./keydialog.js";
import { samples, sum } from "./prometheus.js";
import { useTheme } from "./theme.js";

const ASK_EVERY = 2000; // ms
const MODELS_EVERY = 15; // questions

function table(place, names, rows, nothing) {
  if (!rows.length) return byId(place).replaceChildren(h("p", { class: "note" }, nothing));
  const head = h("tr", {}, ...names.map((name) => h("th", { scope: "col" }, name)));
  const body = rows.map((row) => h("tr", {}, ...row.map((cell) => h("td", {}, ...(cell instanceof Node ? [cell] : visible(String(cell)))))));
  byId(place).replaceChildren(h("table", {}, h("thead", {}, head), h("tbody", {}, ...body)));
}

function share(part, label) {
  const bar = h("progress", { max: "1", "aria-label": label });
  bar.value = part;
  return h("span", {}, bar, ` ${Math.round(100 * part)} %`);
}

function showModels(models) {
  table(
    "models",
    ["Model", "Context", "Running", "Waiting", "Cache in use", "Loaded in", "Threads"],
    models.flatMap((model) => [
      [
        model.id,
        count(model.context),
        model.running,
        model.waiting,
        h("span", {}, share(model.cache.used, "Cache in use"), ` of ${bytes(model.cache.bytes)}`),
        seconds(model.load_seconds),
        model.threads,
      ],
      ...model.replicas.map((replica, index) => [
        `replica ${index + 1}${replica.up ? "" : ": lost, started again as soon as can be"}`,
        "",
        replica.running,
        replica.waiting,
        share(replica.cache_used, "Cache in use"),
        "",
        "",
      ]),
    ]),
    "None: one is loaded when it is first asked.",
  );
  table(
    "experts",
    ["Model", "In memory", "Of all", "Found in memory", "Read from disk", "Waited for the disk"],
    models.filter((model) => model.experts).map(({ id, experts }) => [
      id,
      `${bytes(experts.resident_bytes)} of ${bytes(experts.capacity_bytes)}`,
      `${count(experts.resident)} of ${count(experts.all)}`,
      share(experts.hits / Math.max(1, experts.hits + experts.misses), "Found in memory"),
      bytes(experts.read_bytes),
      seconds(experts.wait_seconds),
    ]),
    "No model's experts are on disk.",
  );
}

function showStreams(streams) {
  table(
    "streams",
    ["Answer", "Model", "State", "Prompt", "Tokens", "Tokens/s", "For"],
    streams.map((stream) => [
      stream.id ?? "another key's",
      stream.model,
      stream.state,
      `${count(stream.prompt.done)} of ${count(stream.prompt.total)} (${count(stream.prompt.cached)} cached)`,
      count(stream.tokens),
      stream.writing_seconds > 0.5 ? (stream.tokens / stream.writing_seconds).toFixed(1) : "",
      seconds(stream.seconds),
    ]),
    "Nobody is being answered.",
  );
}

function showSummary(status, all) {
  const total = (name) => sum(all, name);
  const parts = [
    `dure ${status.version}, ${status.status}, up for ${seconds(status.uptime_seconds)}`,
    `${count(status.requests.active)} answers run or wait, of ${count(status.requests.most)} (${status.parallel} at once)`,
    `${count(total("generation_tokens_total"))} tokens written, ${count(total("prompt_tokens_total"))} read, ${count(total("prefix_cache_hits_total"))} found in the cache`,
  ];
  const joules = total("joules_total");
  const paid = total("money_total");
  if (joules) parts.push(`${count(Math.round(joules))} J for answers`);
  if (paid) parts.push(`${money(paid)} charged`);
  byId("summary").textContent = `${parts.join(" · ")}.`;
}

function showLoading(loading) {
  byId("loading").hidden = loading === null;
  if (loading === null) return;
  const { id, stage, done_bytes: done, total_bytes: total } = loading;
  if (total) byId("load-bar").value = done / total;
  else byId("load-bar").removeAttribute("value");
  byId("load-line").textContent = `${stage} ${id}: ${bytes(done)}${total ? ` of ${bytes(total)}` : ""}, ${seconds(loading.seconds)}`;
}

async function showAll() {
  const { data } = await getJson("v1/models");
  table(
    "all",
    ["Model", "Quantised", "Weights", "Parameters", "Context", "In memory", "License"],
    data.map((model) => [
      model.id,
      model.quantization ?? "",
      model.size_bytes ? bytes(model.size_bytes) : "",
      model.parameters ? `${(model.parameters / 1e9).toFixed(1)} B` : "",
      model.context_length ? count(model.context_length) : "",
      model.loaded ? "yes" : "no",
      model.license ?? "",
    ]),
    "None: dure pull fetches one.",
  );
}

async function ask(number) {
  const [status, text] = await Promise.all([getJson("v1/status"), request("metrics").then((answer) => answer.text())]);
  const all = samples(text);
  showLoading(status.loading);
  showModels(status.models);
  showStreams(status.streams);
  showSummary(status, all);
  if (byId("metrics-details").open) {
    const rows = all.filter(({ name }) => !name.endsWith("_bucket") && !name.endsWith("_created"));
    table("metrics", ["Name", "Of", "Value"], rows.map(({ name, labels, value }) => [name, labels, value]), "None.");
  }
  if (number % MODELS_EVERY === 0) await showAll();
}

async function watch() {
  for (let number = 0; ; number += 1) {
    if (!document.hidden) {
      try {
        await ask(number);
        byId("trouble").hidden = true;
      } catch (error) {
        byId("trouble").textContent = error.message;
        byId("trouble").hidden = false;
      }
    }
    await new Promise((resolve) => setTimeout(resolve, ASK_EVERY));
  }
}

useTheme();
useKeyDialog();
watch();

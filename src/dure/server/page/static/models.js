// Which model answers, and how far is the one that is being loaded?

import { getJson, postJson } from "./api.js";
import { announce, byId, h } from "./dom.js";
import { bytes, count } from "./figures.js";
import { preference, setPreference } from "./store.js";

const ASK_EVERY = 1000; // ms, while a model is loaded

export class ModelPicker {
  constructor() {
    this.select = byId("model");
    this.loadButton = byId("load");
    this.bar = byId("load-bar");
    this.line = byId("load-line");
    this.models = [];
    this.select.addEventListener("change", () => {
      setPreference("model", this.select.value);
      this.showAbout();
    });
    this.loadButton.addEventListener("click", () => this.load());
  }

  get name() {
    return this.select.value;
  }

  get current() {
    return this.models.find((model) => model.id === this.name);
  }

  // Ask which models there are. Throws ServerError.
  async refresh() {
    this.models = (await getJson("v1/models")).data;
    const wanted = this.select.value || preference("model", "");
    this.select.replaceChildren(...this.models.map((model) => h("option", { value: model.id }, label(model))));
    if (this.models.some((model) => model.id === wanted)) this.select.value = wanted;
    this.select.hidden = this.models.length === 0;
    byId("no-model").hidden = this.models.length > 0;
    this.showAbout();
    this.watch();
  }

  showAbout() {
    const model = this.current;
    this.loadButton.hidden = model === undefined || model.loaded || this.isWatching;
    this.select.title = model === undefined ? "" : about(model);
  }

  // Load the chosen model now, and not at the first message.
  async load() {
    const { name } = this;
    this.watch(true);
    try {
      await postJson("api/generate", { model: name });
      announce(`${name} is loaded.`);
    } catch (error) {
      this.line.textContent = error.message;
    }
    await this.refresh();
  }

  // Show the loading of a model as long as there is one.
  async watch(isComing = false) {
    if (this.isWatching) return;
    this.isWatching = true;
    let isSeen = false;
    for (let asked = 0; ; asked += 1) {
      const status = await getJson("v1/status", { signal: AbortSignal.timeout(5000) }).catch(() => null);
      const loading = status?.loading ?? null;
      if (loading === null && (isSeen || !isComing || asked > 2)) break;
      isSeen ||= loading !== null;
      if (loading !== null) this.showLoading(loading);
      await new Promise((resolve) => setTimeout(resolve, ASK_EVERY));
    }
    this.isWatching = false;
    byId("loading").hidden = true;
    if (isSeen) await this.refresh().catch(() => {});
    this.showAbout();
  }

  showLoading({ id, stage, done_bytes: done, total_bytes: total }) {
    byId("loading").hidden = false;
    this.loadButton.hidden = true;
    if (total) this.bar.value = done / total;
    else this.bar.removeAttribute("value");
    const share = total ? `: ${bytes(done)} of ${bytes(total)}` : "";
    this.line.textContent = `${stage === "loading" ? "Loading" : stage} ${id}${share}`;
  }
}

function label(model) {
  const parts = [model.id, model.quantization, model.size_bytes ? bytes(model.size_bytes) : "", model.loaded ? "loaded" : ""];
  return parts.filter(Boolean).join(" · ");
}

function about(model) {
  const parts = [
    model.title,
    model.lineage,
    model.parameters ? `${(model.parameters / 1e9).toFixed(1)} B parameters` : "",
    model.context_length ? `context of ${count(model.context_length)} tokens` : "",
    model.license,
  ];
  return parts.filter(Boolean).join("\n");
}

// How does one answer come? From the request to its last token, into the message that it becomes.

import { getJson, postJson, ServerError } from "./api.js";
import { apiMessages } from "./conversation.js";
import { figuresOf } from "./figures.js";
import { apiFields } from "./parameters.js";
import { chatEvents } from "./stream.js";

const ASK_EVERY = 1000; // ms between two questions what is being loaded

export class Run {
  // node: the message of the assistant's that the answer goes into. onUpdate is called when there is more of it.
  constructor(conversation, node, { model, goesOn = false, onUpdate }) {
    this.conversation = conversation;
    this.node = node;
    this.model = model;
    this.goesOn = goesOn;
    this.onUpdate = onUpdate;
    this.phase = "waiting"; // loading, reading, thinking, writing, over
    this.progress = null; // of the prompt: done, total, cached, seconds
    this.loading = null; // of the model: id, done_bytes, total_bytes
    this.id = null; // the answer's id on the server
    this.tokens = 0;
    this.began = performance.now();
    this.firstAt = 0;
    this.thoughtAt = 0;
    this.thoughtBefore = node.thought ?? 0;
    this.stopping = new AbortController();
  }

  get rate() {
    const spent = (performance.now() - this.firstAt) / 1000;
    return this.firstAt && this.tokens > 1 && spent > 0.2 ? (this.tokens - 1) / spent : 0;
  }

  get elapsed() {
    return (performance.now() - this.began) / 1000;
  }

  // Returns when the answer is over, whole, stopped or failed: the message says which.
  async start() {
    const { node, conversation } = this;
    const watching = setInterval(() => this.watch(), ASK_EVERY);
    node.error = node.finish = undefined;
    try {
      const body = {
        ...apiFields(conversation.settings),
        model: this.model || undefined,
        messages: apiMessages(conversation, this.goesOn ? node.id : node.parent),
      };
      for await (const event of chatEvents(body, this.stopping.signal)) this.take(event);
    } catch (error) {
      if (this.stopping.signal.aborted) node.finish = "stopped";
      else {
        node.finish = "error";
        node.error = error instanceof ServerError ? error.message : String(error.message ?? error);
        this.retryAfter = error.retryAfter ?? null;
      }
    } finally {
      clearInterval(watching);
      this.endThought();
      this.phase = "over";
      node.updated = Date.now();
      this.onUpdate();
    }
  }

  stop() {
    this.stopping.abort();
  }

  // Let the model close its thoughts, and answer.
  async answerNow() {
    if (this.id === null) return;
    await postJson("v1/chat/completions/control", { id: this.id, action: "reasoning_end" });
  }

  take(event) {
    const { node } = this;
    this.id ??= event.id;
    if (event.model) node.model = event.model;
    if (event.prompt_progress) {
      const { total, cache, processed, time_ms: ms } = event.prompt_progress;
      this.phase = "reading";
      this.progress = { done: processed, total, cached: cache, seconds: ms / 1000 };
    }
    const choice = event.choices?.[0];
    if (choice !== undefined) this.takeChoice(choice);
    if (event.timings) this.timings = event.timings;
    if (event.usage) this.usage = event.usage;
    if (event.timings || event.usage) node.figures = figuresOf(this.timings, this.usage);
    node.updated = Date.now();
    this.onUpdate();
  }

  takeChoice(choice) {
    const { node } = this;
    const delta = choice.delta ?? {};
    const thought = delta.reasoning_content ?? delta.reasoning;
    if (thought || delta.content || delta.tool_calls) {
      this.tokens += 1;
      this.firstAt ||= performance.now();
    }
    if (thought) {
      this.phase = "thinking";
      this.thoughtAt ||= performance.now();
      node.reasoning = (node.reasoning ?? "") + thought;
    }
    if (delta.content) {
      this.endThought();
      this.phase = "writing";
      node.content += delta.content;
    }
    for (const call of delta.tool_calls ?? []) this.takeCall(call);
    if (choice.finish_reason) node.finish = choice.finish_reason;
  }

  takeCall({ index, id, function: asked }) {
    this.endThought();
    this.phase = "writing";
    const calls = (this.node.calls ??= []);
    const call = (calls[index] ??= { id: id ?? `call_${index}`, name: "", text: "" });
    if (asked?.name) call.name = asked.name;
    call.text += asked?.arguments ?? "";
  }

  endThought() {
    if (!this.thoughtAt) return;
    this.node.thought = this.thoughtBefore + (performance.now() - this.thoughtAt) / 1000;
    this.thoughtBefore = this.node.thought;
    this.thoughtAt = 0;
  }

  // While nothing comes: is the model being loaded, and how far?
  async watch() {
    if (this.id !== null || document.hidden) return;
    try {
      const { loading } = await getJson("v1/status", { signal: AbortSignal.timeout(5000) });
      if (this.id !== null || this.phase === "over") return;
      this.loading = loading;
      this.phase = loading === null ? "waiting" : "loading";
      this.onUpdate();
    } catch {
      // the answer's own request says what is wrong
    }
  }
}

// How does one message look, and what can be done with it?

import { announce, button, copyButton, h, visible } from "./dom.js";
import { textOf } from "./conversation.js";
import { bytes, count, figuresLine, seconds } from "./figures.js";
import { Markdown } from "./markdown.js";

export class MessageView {
  // actions: what the buttons do; see chat.js
  constructor(node, actions) {
    this.node = node;
    this.actions = actions;
    this.isUser = node.role === "user";
    this.body = h("div", { class: this.isUser ? "said" : "answer" });
    this.tools = h("div", { class: "actions" });
    this.name = h("h2", { class: "who" }, this.isUser ? "You" : node.model || "Assistant");
    this.element = h("article", { class: node.role, "data-id": node.id, tabindex: "-1" }, this.name, this.body, this.tools);
    if (this.isUser) this.showUser();
    else this.buildAnswer();
  }

  showUser() {
    const { node } = this;
    const files = (node.files ?? []).map((file) =>
      h(
        "details",
        { class: "file" },
        h("summary", {}, ...visible(file.name), ` · ${bytes(file.text.length)}`),
        h("pre", { tabindex: "0" }, ...visible(file.text)),
      ),
    );
    this.body.replaceChildren(...files, h("div", { class: "plain-text", dir: "auto" }, ...visible(node.content)));
  }

  buildAnswer() {
    this.thinkingLine = h("summary", {}, "Thinking");
    this.thoughts = h("div", { class: "thoughts", dir: "auto" });
    this.answerNow = button("Answer now", () => this.actions.answerNow(this.node), { class: "answer-now" });
    this.thinking = h("details", { class: "thinking" }, this.thinkingLine, this.thoughts);
    this.thinkingRow = h("div", { class: "thinking-row", hidden: true }, this.thinking, this.answerNow);
    this.content = h("div", { class: "markdown" });
    this.calls = h("div", { class: "calls" });
    this.bar = h("progress", { max: "1", "aria-label": "Progress" });
    this.stateLine = h("span", {}, "");
    this.state = h("div", { class: "state", hidden: true }, this.bar, this.stateLine);
    this.error = h("p", { class: "error", role: "alert", hidden: true });
    this.line = h("p", { class: "figures" });
    this.body.append(this.thinkingRow, this.content, this.calls, this.state, this.error, this.line);
    this.markdown = new Markdown(this.content);
    this.shownThought = this.shownContent = 0;
    this.isEnded = false;
  }

  // Show what has come since the last time. run: what makes the answer, or null when it is over.
  update(run) {
    if (this.isUser) return;
    const { node } = this;
    const isOver = run === null || run.phase === "over";
    // A text that ended cannot go on: it is read anew. A run may begin and be over within one frame.
    if (this.isEnded && node.content.length > this.shownContent) this.restart();
    const thought = node.reasoning ?? "";
    if (thought.length > this.shownThought) {
      this.thoughts.append(...visible(thought.slice(this.shownThought)));
      this.shownThought = thought.length;
    }
    if (node.content.length > this.shownContent) {
      this.markdown.append(node.content.slice(this.shownContent));
      this.shownContent = node.content.length;
    }
    if (isOver && !this.isEnded) {
      this.markdown.end();
      this.isEnded = true;
    }
    if (node.model && this.name.textContent !== node.model) this.name.textContent = node.model;
    this.element.setAttribute("aria-busy", String(!isOver));
    this.showThinking(run, isOver);
    this.showState(run, isOver);
    if (isOver || node.calls?.length) this.showCalls(isOver);
    this.error.hidden = !(isOver && node.error);
    if (!this.error.hidden) this.error.replaceChildren(...visible(node.error));
    this.line.textContent = isOver && node.figures ? figuresLine(node.figures) : "";
  }

  restart() {
    this.isEnded = false;
    this.content.replaceChildren();
    this.markdown = new Markdown(this.content);
    this.shownContent = 0;
  }

  showThinking(run, isOver) {
    const { node } = this;
    this.thinkingRow.hidden = !node.reasoning;
    if (!node.reasoning) return;
    const isThinking = !isOver && run.phase === "thinking";
    const spent = isThinking ? run.thoughtBefore + (performance.now() - run.thoughtAt) / 1000 : node.thought;
    const time = spent ? ` ${seconds(spent)}` : "";
    const label = isThinking ? `Thinking…${time}` : `Thought${time ? ` for${time}` : ""}`;
    if (this.thinkingLine.textContent !== label) this.thinkingLine.textContent = label;
    this.answerNow.hidden = !isThinking;
  }

  showState(run, isOver) {
    const said = isOver ? this.endLine() : stateOf(run);
    this.state.hidden = said === null;
    if (said === null) return;
    this.bar.hidden = said.share === undefined;
    if (said.share !== undefined) this.bar.value = said.share;
    if (this.stateLine.textContent !== said.text) this.stateLine.textContent = said.text;
  }

  endLine() {
    const { finish } = this.node;
    if (finish === "stopped") return { text: "Stopped." };
    if (finish === "length") return { text: "The answer was cut: it has as many tokens as it may." };
    return null;
  }

  showCalls(isOver) {
    const { node } = this;
    const shown = JSON.stringify([node.calls, isOver]);
    if (shown === this.shownCalls) return;
    this.shownCalls = shown;
    this.calls.replaceChildren(...(node.calls ?? []).map((call) => this.callView(call, isOver)));
    const open = isOver && node.calls?.length && node.finish === "tool_calls" && !this.actions.isAnswered(node);
    if (open) this.calls.append(button("Send results", () => this.actions.sendResults(node), { class: "main" }));
  }

  callView(call, isOver) {
    const view = h(
      "details",
      { class: "call", open: true },
      h("summary", {}, "Calls ", h("code", {}, ...visible(call.name))),
      h("pre", { tabindex: "0" }, ...visible(pretty(call.text, isOver))),
    );
    if (!isOver || this.node.finish !== "tool_calls") return view;
    const area = h("textarea", { rows: "2", "aria-label": `Result of ${call.name}`, placeholder: "Its result" });
    area.value = call.result ?? "";
    area.addEventListener("input", () => this.actions.setResult(this.node, call, area.value));
    view.append(area);
    return view;
  }

  // The buttons below the message. branch: which of how many stands here. isLast: nothing follows.
  showActions({ place, all }, isRunning, isLast) {
    const { node, actions } = this;
    const made = [];
    if (all > 1) {
      made.push(
        button("‹", () => actions.branch(node, -1), { "aria-label": "The version before", disabled: place === 0 || isRunning }),
        h("span", { class: "place" }, `${place + 1} / ${all}`),
        button("›", () => actions.branch(node, 1), { "aria-label": "The next version", disabled: place === all - 1 || isRunning }),
      );
    }
    const text = () => (this.isUser ? textOf(node) : node.content);
    made.push(copyButton(text));
    if (this.isUser) made.push(button("Edit", () => this.edit(), { disabled: isRunning }));
    else {
      made.push(button(node.finish === "error" ? "Try again" : "Regenerate", () => actions.regenerate(node), { disabled: isRunning }));
      const isCut = ["length", "stopped", "error"].includes(node.finish) && node.content && !node.calls?.length;
      if (isLast && isCut) made.push(button("Continue", () => actions.goOn(node), { disabled: isRunning }));
    }
    const focused = this.tools.contains(document.activeElement) ? document.activeElement.textContent : null;
    this.tools.replaceChildren(...made);
    if (focused !== null) made.find((each) => each.textContent === focused)?.focus();
  }

  // Let the person change what they said: that begins another branch.
  edit() {
    const area = h("textarea", { class: "editing", "aria-label": "Edit your message", dir: "auto" });
    area.value = this.node.content;
    const end = () => {
      form.remove();
      this.body.hidden = this.tools.hidden = false;
      this.element.focus();
    };
    const send = () => {
      end();
      if (area.value.trim()) this.actions.edited(this.node, area.value);
    };
    const form = h("form", { class: "edit" }, area, h("div", {}, button("Send", send, { class: "main" }), button("Cancel", end)));
    area.addEventListener("keydown", (event) => {
      if (event.isComposing || event.keyCode === 229) return;
      if (event.key === "Escape") end();
      else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    this.body.hidden = this.tools.hidden = true;
    this.element.append(form);
    area.style.height = `${Math.min(400, area.scrollHeight + 4)}px`;
    area.focus();
    announce("Editing. Control and Enter send, Escape cancels.");
  }
}

function stateOf(run) {
  const { progress, loading, phase } = run;
  if (phase === "loading") {
    const share = loading.total_bytes ? loading.done_bytes / loading.total_bytes : undefined;
    const verb = loading.stage === "loading" ? "Loading" : `${loading.stage[0].toUpperCase()}${loading.stage.slice(1)}`;
    const percent = share === undefined ? "" : `: ${Math.floor(100 * share)} %`;
    return { text: `${verb} ${loading.id}${percent}`, share };
  }
  if (phase === "reading" && progress.total > 0) {
    const share = progress.done / progress.total;
    const fresh = progress.done - progress.cached;
    const left = fresh > 0 ? ((progress.total - progress.done) * progress.seconds) / fresh : 0;
    const cached = progress.cached ? ` (${count(progress.cached)} cached)` : "";
    const more = left > 1 ? `, about ${seconds(left)} more` : "";
    return { text: `Reading ${count(progress.done)} of ${count(progress.total)} tokens${cached}${more}`, share };
  }
  if (phase === "waiting" || phase === "reading") return { text: `Waiting… ${Math.floor(run.elapsed)} s` };
  return { text: run.rate ? `${run.rate.toFixed(1)} tokens/s` : "…" };
}

function pretty(text, isOver) {
  if (!isOver) return text;
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

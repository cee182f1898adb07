// The chat: what a person does, and what becomes of it. It joins the other files, and has no rules of its own.

import { forgetKey, hasKey } from "./api.js";
import { Composer } from "./composer.js";
import { addNode, asMarkdown, newConversation, path, show, siblings } from "./conversation.js";
import { tell } from "./dialogs.js";
import { announce, byId, h, save } from "./dom.js";
import { count } from "./figures.js";
import { useKeyDialog } from "./keydialog.js";
import { MessageView } from "./message.js";
import { ModelPicker } from "./models.js";
import { cleanSettings } from "./parameters.js";
import { Run } from "./run.js";
import { askSettings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { preference, setPreference, Store } from "./store.js";
import { useTheme } from "./theme.js";

const SAVE_EVERY = 2000; // ms, while an answer comes
const NEAR_END = 80; // pixels: who is so near to the end follows the answer
const REST = 4; // showing an answer takes at most one part in so many of the time
const SPOKEN = 3000; // characters of an answer that a screen reader is given

class Chat {
  constructor() {
    this.store = new Store();
    this.runs = new Map(); // by conversation's id
    this.views = new Map(); // by message's id, of the conversation that is shown
    this.conversation = this.fresh();
    this.log = byId("log");
    this.isDrawing = false;
    this.drawnUntil = 0;
    this.models = new ModelPicker();
    this.composer = new Composer({
      onSend: (content, files) => this.say(this.conversation.leaf, content, files),
      onStop: () => this.run?.stop(),
      onBudget: (budget) => this.setBudget(budget),
      onEditLast: () => this.editLast(),
    });
    this.sidebar = new Sidebar(this.store, {
      onNew: () => this.open(null),
      onOpen: (id) => this.open(id),
      onRemoved: (id) => this.removed(id),
      onRenamed: (id, title) => this.renamed(id, title),
      onImported: (id) => (id ? this.open(id) : this.refreshList()),
      isRunning: (id) => this.runs.has(id),
    });
    this.actions = {
      answerNow: () => this.run?.answerNow().catch((error) => announce(error.message)),
      regenerate: (node) => this.answer(node.parent),
      goOn: (node) => this.goOn(node),
      edited: (node, text) => this.say(node.parent, text, node.files),
      branch: (node, by) => this.branch(node, by),
      isAnswered: (node) => Object.values(this.conversation.nodes).some((each) => each.parent === node.id),
      setResult: (node, call, text) => {
        call.result = text;
        node.updated = Date.now();
        this.keepSoon();
      },
      sendResults: (node) => this.sendResults(node),
    };
  }

  get run() {
    return this.runs.get(this.conversation.id);
  }

  fresh() {
    return newConversation(cleanSettings(preference("settings", {})));
  }

  async start() {
    useTheme();
    useKeyDialog();
    this.listen();
    const isForgetful = await this.store.open();
    byId("forgetful").hidden = !isForgetful;
    this.store.onChange((id) => this.changedElsewhere(id));
    await this.open(location.hash.slice(1) || null);
    this.composer.focus();
    await this.models.refresh().catch((error) => this.showTrouble(error));
    byId("forget-key").hidden = !hasKey();
  }

  listen() {
    byId("settings").addEventListener("click", () => this.changeSettings());
    byId("save-one").addEventListener("click", () => {
      const name = (this.conversation.title || "conversation").replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60);
      save(`${name}.md`, "text/markdown", asMarkdown(this.conversation));
    });
    byId("to-end").addEventListener("click", () => this.toEnd());
    byId("forget-key").addEventListener("click", () => {
      forgetKey();
      location.reload();
    });
    byId("keys").addEventListener("click", () => this.showKeys());
    this.log.addEventListener("scroll", () => this.showToEnd(), { passive: true });
    document.addEventListener("keydown", (event) => this.shortcut(event));
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) this.keep();
      else this.draw();
    });
    window.addEventListener("pagehide", () => this.keep());
    window.addEventListener("hashchange", () => {
      const id = location.hash.slice(1);
      if (id && id !== this.conversation.id) this.open(id);
    });
    setInterval(() => this.run && this.draw(), 1000); // seconds that pass, though nothing comes
  }

  shortcut(event) {
    if (event.isComposing || event.keyCode === 229 || document.querySelector("dialog[open]")) return;
    const isTyping = event.target.matches("input, textarea, select");
    if (event.key === "Escape" && this.run) this.run.stop();
    else if ((event.ctrlKey || event.metaKey) && event.shiftKey && event.key.toLowerCase() === "o") this.open(null);
    else if (event.key === "/" && !isTyping) this.composer.focus();
    else if (event.key === "?" && !isTyping) this.showKeys();
    else return;
    event.preventDefault();
  }

  showKeys() {
    return tell(
      "Keys",
      "Enter: send. Shift and Enter: a new line.",
      "Escape: stop the answer. Arrow up in the empty box: edit the last message.",
      "Control (or Command), Shift and O: a new conversation.",
      "/: to the box. ?: this list. Control and Enter: send an edited message.",
    );
  }

  // Show a conversation; null: a new one.
  async open(id) {
    this.keep();
    const running = id === null ? undefined : this.runs.get(id)?.conversation;
    const stored = id === null ? undefined : (running ?? (await this.store.get(id)));
    this.conversation = stored ?? this.fresh();
    const address = stored === undefined ? location.pathname : `#${id}`;
    if (location.hash.slice(1) !== (stored === undefined ? "" : id)) history.pushState(null, "", address);
    this.views.clear();
    this.log.replaceChildren();
    this.composer.setBudget(this.conversation.settings.budget);
    this.render();
    this.toEnd();
    await this.refreshList();
    if (stored === undefined) this.composer.focus();
  }

  refreshList() {
    return this.sidebar.refresh(this.conversation.id);
  }

  // Bring the messages of the branch that is shown into the page, and take others out.
  render() {
    const nodes = path(this.conversation);
    const wanted = new Set(nodes.map((node) => node.id));
    for (const [id, view] of this.views) {
      if (wanted.has(id)) continue;
      view.element.remove();
      this.views.delete(id);
    }
    byId("empty").hidden = nodes.length > 0;
    const isRunning = this.run !== undefined;
    const families = new Map();
    for (const node of Object.values(this.conversation.nodes)) {
      families.set(node.parent, (families.get(node.parent) ?? 0) + 1);
    }
    let before = null;
    nodes.forEach((node, place) => {
      const view = this.view(node);
      const all = families.get(node.parent);
      const at = all > 1 ? siblings(this.conversation, node).indexOf(node) : 0;
      view.showActions({ place: at, all }, isRunning, place === nodes.length - 1);
      if (before === null ? this.log.firstElementChild !== view.element : before.nextElementSibling !== view.element) {
        if (before === null) this.log.prepend(view.element);
        else before.after(view.element);
      }
      before = view.element;
    });
    this.composer.showRunning(isRunning);
    document.title = `${this.conversation.title || "New conversation"} – dure`;
    this.showContext(nodes);
  }

  view(node) {
    const known = this.views.get(node.id);
    if (known !== undefined && known.node === node) return known;
    known?.element.remove();
    const made = new MessageView(node, this.actions);
    this.views.set(node.id, made);
    made.update(this.run?.node === node ? this.run : null);
    return made;
  }

  showContext(nodes) {
    const last = nodes.findLast((node) => node.figures?.prompt !== undefined);
    const most = this.models.current?.context_length;
    const used = last === undefined ? 0 : last.figures.prompt + (last.figures.output ?? 0);
    byId("context").textContent = used && most ? `${count(used)} of ${count(most)} tokens` : "";
  }

  // Say something below `parent`, and let it be answered.
  say(parent, content, files = []) {
    if (this.run) return;
    const node = addNode(this.conversation, parent, { role: "user", content, files: files.length ? files : undefined });
    if (location.hash.slice(1) !== this.conversation.id) history.replaceState(null, "", `#${this.conversation.id}`);
    this.answer(node.id);
  }

  answer(parent) {
    if (this.run) return;
    this.begin(addNode(this.conversation, parent, { role: "assistant", model: this.models.name }), false);
  }

  goOn(node) {
    if (!this.run) this.begin(node, true);
  }

  sendResults(node) {
    for (const call of node.calls) call.result ??= "";
    this.answer(node.id);
  }

  async begin(node, goesOn) {
    const { conversation } = this;
    const run = new Run(conversation, node, { model: this.models.name, goesOn, onUpdate: () => this.draw() });
    this.runs.set(conversation.id, run);
    this.render();
    this.toEnd();
    announce("The answer is coming.");
    const keeping = setInterval(() => this.keep(conversation), SAVE_EVERY);
    await this.keep(conversation);
    this.refreshList();
    await run.start();
    clearInterval(keeping);
    this.runs.delete(conversation.id);
    conversation.updated = Date.now();
    await this.keep(conversation);
    if (this.conversation === conversation) this.ended(run);
    this.refreshList();
    if (!this.models.current?.loaded) this.models.refresh().catch(() => {});
  }

  ended(run) {
    const isNear = this.isNearEnd();
    this.views.get(run.node.id)?.update(null);
    this.render();
    if (isNear) this.toEnd();
    const { content, error, finish } = run.node;
    announce(error ?? (finish === "stopped" ? "Stopped." : content.slice(0, SPOKEN) || "The answer is over."));
  }

  // Show what has come: once a frame, and no more often than leaves the browser time for a person.
  draw() {
    if (this.isDrawing || document.hidden) return;
    this.isDrawing = true;
    const wait = this.drawnUntil - performance.now();
    const frame = () =>
      requestAnimationFrame(() => {
        this.isDrawing = false;
        const { run } = this;
        if (run === undefined) return;
        const began = performance.now();
        const isNear = this.isNearEnd();
        this.views.get(run.node.id)?.update(run);
        if (isNear) this.toEnd();
        this.showToEnd();
        const ended = performance.now();
        this.drawnUntil = ended + REST * (ended - began);
      });
    if (wait > 0) setTimeout(frame, wait);
    else frame();
  }

  isNearEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.log;
    return scrollHeight - scrollTop - clientHeight < NEAR_END;
  }

  toEnd() {
    this.log.scrollTop = this.log.scrollHeight;
  }

  showToEnd() {
    byId("to-end").hidden = this.isNearEnd();
  }

  branch(node, by) {
    const all = siblings(this.conversation, node);
    const other = all[all.indexOf(node) + by];
    if (other === undefined || this.run) return;
    show(this.conversation, other);
    this.render();
    this.views.get(other.id)?.element.focus();
    this.keepSoon();
  }

  editLast() {
    const last = path(this.conversation).findLast((node) => node.role === "user");
    if (last === undefined || this.run) return false;
    this.views.get(last.id)?.edit();
    return true;
  }

  setBudget(budget) {
    const { settings } = this.conversation;
    if (budget === undefined) delete settings.budget;
    else settings.budget = budget;
    setPreference("settings", { ...preference("settings", {}), budget });
    this.keepSoon();
  }

  async changeSettings() {
    const { conversation } = this;
    const changed = await askSettings(conversation.settings);
    if (changed === null) return;
    conversation.settings = changed.settings;
    if (changed.isDefault) setPreference("settings", changed.settings);
    this.keepSoon();
    byId("settings").focus();
  }

  keepSoon() {
    clearTimeout(this.keeping);
    this.keeping = setTimeout(() => this.keep(), 300);
  }

  // Write it down, unless nothing was said yet.
  async keep(conversation = this.conversation) {
    if (conversation.leaf === null) return;
    try {
      await this.store.put(conversation);
    } catch (error) {
      this.showTrouble(new Error(`The browser keeps no more: ${error.message}`));
    }
  }

  async changedElsewhere(id) {
    await this.refreshList();
    const stored = await this.store.get(id);
    if (stored === undefined) {
      this.store.removed.add(id);
      return this.removed(id);
    }
    this.store.removed.delete(id); // imported again
    if (id !== this.conversation.id || this.run) return;
    const { leaf, nodes } = this.conversation;
    for (const [name, node] of Object.entries(stored.nodes)) {
      if (nodes[name]?.updated === node.updated) stored.nodes[name] = nodes[name]; // shown already
    }
    this.conversation = stored;
    if (leaf in stored.nodes && !path(stored).some((node) => node.id === leaf)) stored.leaf = leaf;
    this.render();
  }

  async renamed(id, title) {
    const conversation = id === this.conversation.id ? this.conversation : await this.store.get(id);
    if (conversation === undefined) return;
    conversation.title = title;
    await this.keep(conversation);
    this.render();
    await this.refreshList();
  }

  removed(id) {
    this.runs.get(id)?.stop();
    if (id === this.conversation.id) {
      this.conversation = this.fresh();
      this.open(null);
    } else this.refreshList();
  }

  showTrouble(error) {
    const place = byId("trouble");
    place.replaceChildren(h("p", {}, error.message));
    place.hidden = false;
    setTimeout(() => (place.hidden = true), 10_000);
  }
}

new Chat().start();

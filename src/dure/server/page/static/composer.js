// What does a person write, and when is it sent? The box, the files on it, and the slider for thinking.

import { announce, button, byId, h, visible } from "./dom.js";
import { bytes } from "./figures.js";
import { readFiles } from "./files.js";
import { BUDGETS, budgetLabel } from "./parameters.js";

// Whether this key sends. Enter that ends the composition of a syllable or a word does not, and on a
// phone, whose keyboard has no Shift and Enter, it begins a line.
export function sends(event, isTouch) {
  if (event.key !== "Enter" || event.isComposing || event.keyCode === 229) return false;
  if (event.ctrlKey || event.metaKey) return true;
  return !event.shiftKey && !event.altKey && !isTouch;
}

export class Composer {
  // onSend(text, files), onStop(), onBudget(budget), onEditLast()
  constructor({ onSend, onStop, onBudget, onEditLast }) {
    this.form = byId("composer");
    this.box = byId("input");
    this.sendButton = byId("send");
    this.stopButton = byId("stop");
    this.chips = byId("files");
    this.slider = byId("budget");
    this.files = [];
    this.onSend = onSend;
    this.isRunning = false;
    const isTouch = matchMedia("(pointer: coarse)");
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    this.box.addEventListener("keydown", (event) => {
      if (sends(event, isTouch.matches)) {
        event.preventDefault();
        this.send();
      } else if (event.key === "ArrowUp" && !this.box.value && !event.isComposing) {
        if (onEditLast()) event.preventDefault();
      }
    });
    this.box.addEventListener("input", () => this.grow());
    this.stopButton.addEventListener("click", onStop);
    this.slider.max = String(BUDGETS.length - 1);
    this.slider.addEventListener("input", () => {
      this.showBudget();
      onBudget(BUDGETS[Number(this.slider.value)] ?? undefined);
    });
    this.takeFiles();
  }

  send() {
    const text = this.box.value.trim();
    if (this.isRunning || (!text && !this.files.length)) return;
    const { files } = this;
    this.box.value = "";
    this.files = [];
    this.grow();
    this.showFiles();
    this.onSend(text, files);
  }

  focus() {
    this.box.focus();
  }

  grow() {
    this.box.style.height = "auto";
    this.box.style.height = `${Math.min(this.box.scrollHeight + 2, window.innerHeight * 0.4)}px`;
  }

  showRunning(isRunning) {
    this.isRunning = isRunning;
    const hadFocus = document.activeElement === this.stopButton || document.activeElement === this.sendButton;
    this.stopButton.hidden = !isRunning;
    this.sendButton.hidden = isRunning;
    if (hadFocus) this.box.focus();
  }

  setBudget(budget) {
    const step = budget === undefined ? BUDGETS.length - 1 : BUDGETS.findIndex((each) => each === null || each >= budget);
    this.slider.value = String(step);
    this.showBudget();
  }

  showBudget() {
    const label = budgetLabel(Number(this.slider.value));
    byId("budget-label").textContent = label;
    this.slider.setAttribute("aria-valuetext", label);
  }

  takeFiles() {
    const chooser = byId("chooser");
    byId("attach").addEventListener("click", () => chooser.click());
    chooser.addEventListener("change", async () => {
      await this.addFiles(chooser.files);
      chooser.value = "";
    });
    const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
    for (const name of ["dragenter", "dragover"]) {
      document.addEventListener(name, (event) => {
        if (!hasFiles(event)) return;
        event.preventDefault();
        document.body.classList.add("dropping");
      });
    }
    document.addEventListener("dragleave", (event) => {
      if (event.relatedTarget === null) document.body.classList.remove("dropping");
    });
    document.addEventListener("drop", (event) => {
      document.body.classList.remove("dropping");
      if (!hasFiles(event)) return;
      event.preventDefault();
      this.addFiles(event.dataTransfer.files);
    });
    this.box.addEventListener("paste", (event) => {
      if (!event.clipboardData?.files.length) return;
      event.preventDefault();
      this.addFiles(event.clipboardData.files);
    });
  }

  async addFiles(list) {
    const { files, refused } = await readFiles([...list], this.files.length);
    this.files.push(...files);
    this.showFiles(refused);
    announce([files.length ? `${files.length} files added.` : "", ...refused].join(" "));
    this.focus();
  }

  showFiles(refused = []) {
    const chips = this.files.map((file) => {
      const remove = () => {
        this.files = this.files.filter((each) => each !== file);
        this.showFiles();
        this.focus();
      };
      const cross = button("×", remove, { "aria-label": `Remove ${file.name}` });
      return h("li", {}, ...visible(file.name), ` · ${bytes(file.text.length)} `, cross);
    });
    this.chips.replaceChildren(...chips, ...refused.map((each) => h("li", { class: "error" }, ...visible(each))));
  }
}

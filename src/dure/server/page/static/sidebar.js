// Which conversations are there, and what can be done with all of them?

import { askText, dialog, tell } from "./dialogs.js";
import { announce, button, byId, h, save, visible } from "./dom.js";
import { exported, imported } from "./transfer.js";

export class Sidebar {
  // onOpen(id), onNew(), onRemoved(id), onRenamed(id, title), onImported(id), isRunning(id)
  constructor(store, actions) {
    this.store = store;
    this.actions = actions;
    this.list = byId("conversations");
    this.filter = byId("filter");
    this.heads = [];
    this.current = null;
    this.filter.addEventListener("input", () => this.show());
    byId("new").addEventListener("click", () => {
      this.close();
      actions.onNew();
    });
    byId("menu").addEventListener("click", () => this.toggle());
    byId("export").addEventListener("click", () => this.exportAll());
    const chooser = byId("import-chooser");
    byId("import").addEventListener("click", () => chooser.click());
    chooser.addEventListener("change", async () => {
      const [file] = chooser.files;
      if (file) await this.importFile(file);
      chooser.value = "";
    });
    byId("side").addEventListener("keydown", (event) => {
      if (event.key === "Escape" && document.body.classList.contains("side-open")) {
        event.stopPropagation();
        this.close();
        byId("menu").focus();
      }
    });
  }

  toggle() {
    const isOpen = document.body.classList.toggle("side-open");
    byId("menu").setAttribute("aria-expanded", String(isOpen));
    if (isOpen) byId("new").focus();
  }

  close() {
    document.body.classList.remove("side-open");
    byId("menu").setAttribute("aria-expanded", "false");
  }

  async refresh(current) {
    this.current = current;
    this.heads = await this.store.heads();
    this.show();
  }

  show() {
    const wanted = this.filter.value.trim().toLocaleLowerCase();
    const shown = this.heads.filter((head) => head.title.toLocaleLowerCase().includes(wanted));
    this.list.replaceChildren(...shown.map((head) => this.item(head)));
  }

  item({ id, title }) {
    const name = title || "New conversation";
    const open = button("", () => {
      this.close();
      this.actions.onOpen(id);
    }, { class: "open", "aria-current": id === this.current ? "page" : null, dir: "auto" });
    open.append(...visible(name));
    if (this.actions.isRunning(id)) open.append(h("span", { class: "running", title: "It is being answered" }, " ●"));
    const rename = button("✎", () => this.rename(id, title), { "aria-label": `Rename ${name}`, title: "Rename" });
    const remove = button("×", () => this.remove(id, name), { "aria-label": `Delete ${name}`, title: "Delete" });
    return h("li", {}, open, rename, remove);
  }

  async rename(id, title) {
    const given = await askText("Rename", "Title", title);
    if (given) await this.actions.onRenamed(id, given);
  }

  async remove(id, name) {
    const says = h("p", {}, ...visible(`“${name}” is deleted from this browser. It is nowhere else.`));
    if (!(await dialog("Delete the conversation?", [says], { agree: "Delete", isDangerous: true }))) return;
    await this.store.remove(id);
    announce("Deleted.");
    this.actions.onRemoved(id);
  }

  async exportAll() {
    const all = await Promise.all(this.heads.map((head) => this.store.get(head.id)));
    save(`dure-chats-${new Date().toISOString().slice(0, 10)}.json`, "application/json", exported(all.filter(Boolean)));
  }

  async importFile(file) {
    try {
      const conversations = imported(await file.text());
      for (const conversation of conversations) await this.store.add(conversation);
      announce(`${conversations.length} conversations imported.`);
      this.actions.onImported(conversations[0]?.id);
    } catch (error) {
      await tell("Nothing was imported", error.message);
    }
  }
}

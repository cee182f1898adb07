// Where are conversations kept? In this browser's IndexedDB, and nowhere else; without it, until the tab is closed.

import { merged } from "./conversation.js";

const NAME = "dure";
const CHANNEL = "dure-conversations";

export class Store {
  constructor() {
    this.memory = null; // conversations by id, where the browser keeps nothing
    this.removed = new Set(); // ids: what still writes them down brings none of them back
    this.channel = "BroadcastChannel" in self ? new BroadcastChannel(CHANNEL) : null;
  }

  // Returns whether this browser keeps nothing.
  async open() {
    try {
      this.database = await promised(upgraded(indexedDB.open(NAME, 1)));
    } catch {
      this.memory = new Map();
    }
    return this.memory !== null;
  }

  // `listener` is told the id of a conversation that another tab has changed.
  onChange(listener) {
    if (this.channel !== null) this.channel.onmessage = (event) => listener(String(event.data));
  }

  // id, title, updated of all, the newest first
  async heads() {
    const all = this.memory
      ? [...this.memory.values()].map(head)
      : await promised(this.database.transaction("heads").objectStore("heads").getAll());
    return all.sort((one, other) => other.updated - one.updated);
  }

  async get(id) {
    if (this.memory) return structuredClone(this.memory.get(id));
    return promised(this.database.transaction("whole").objectStore("whole").get(id));
  }

  // Keep it. What another tab has added to it meanwhile stays, and is added to it here.
  async put(conversation) {
    if (this.removed.has(conversation.id)) return;
    if (this.memory) {
      this.memory.set(conversation.id, structuredClone(conversation));
      return;
    }
    const transaction = this.database.transaction(["whole", "heads"], "readwrite");
    const whole = transaction.objectStore("whole");
    const stored = await promised(whole.get(conversation.id));
    const both = merged(stored, conversation);
    for (const [id, node] of Object.entries(both.nodes)) conversation.nodes[id] ??= node;
    whole.put(both);
    transaction.objectStore("heads").put(head(both));
    await finished(transaction);
    this.channel?.postMessage(conversation.id);
  }

  // Keep one that comes from elsewhere, though it may have been removed before.
  async add(conversation) {
    this.removed.delete(conversation.id);
    await this.put(conversation);
  }

  async remove(id) {
    this.removed.add(id);
    if (this.memory) return void this.memory.delete(id);
    const transaction = this.database.transaction(["whole", "heads"], "readwrite");
    transaction.objectStore("whole").delete(id);
    transaction.objectStore("heads").delete(id);
    await finished(transaction);
    this.channel?.postMessage(id);
  }
}

const head = ({ id, title, updated }) => ({ id, title, updated });

function upgraded(opening) {
  opening.onupgradeneeded = () => {
    opening.result.createObjectStore("whole", { keyPath: "id" });
    opening.result.createObjectStore("heads", { keyPath: "id" });
  };
  return opening;
}

function promised(asked) {
  return new Promise((resolve, reject) => {
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
}

function finished(transaction) {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
}

// A preference of this browser: a small value under a name.
export function preference(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(`dure-${name}`)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

export function setPreference(name, value) {
  try {
    localStorage.setItem(`dure-${name}`, JSON.stringify(value));
  } catch {
    // a browser that keeps nothing: it holds until the tab is closed
  }
}

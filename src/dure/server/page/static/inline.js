// What do the marks inside a paragraph mean: emphasis, code, links, formulas? One pass, in linear time.

import { h, link, safeAddress, visible } from "./dom.js";

const MAX_DEPTH = 24; // of emphasis and brackets; what is deeper is plain text
const MAX_FORMULA = 4096;

const SPECIAL = /[\\`*_~[\]!<&\n]|\$\$|https?:\/\//g;
const TARGET =
  /\([ \n]{0,4}(?:<([^<>\n]{0,2000})>|((?:[^\s()\\]|\\.|\([^\s()]{0,500}\)){0,2000}))(?:[ \n]{1,4}(?:"[^"]{0,500}"|'[^']{0,500}'))?[ \n]{0,4}\)/y;
const AUTOLINK = /<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>/y;
const BREAK = /<br ?\/?>/iy;
const ENTITY = /&(?:(amp|lt|gt|quot|apos|nbsp)|#(\d{1,7})|#[xX]([0-9a-fA-F]{1,6}));/y;
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" };
const BARE = /https?:\/\/[^\s<>"'`\u3000-\u303f\uff00-\uffef]{1,2000}/y;
const WORD = /[\p{L}\p{N}]/u;
const SPACE = /\s/;

// Fill `parent` with what `source` means. isOpen: the text still comes, so marks without an end hold.
export function renderInline(parent, source, isOpen = false) {
  parent.replaceChildren(...new Inline(source).nodes(isOpen));
}

class Inline {
  constructor(source) {
    this.source = source;
    this.at = 0;
    this.frames = [{ mark: "", children: [] }]; // begun and not ended, from the outside in
    this.missing = new Set(); // marks that do not come again
  }

  nodes(isOpen) {
    const { source } = this;
    while (this.at < source.length) {
      SPECIAL.lastIndex = this.at;
      const found = SPECIAL.exec(source);
      const next = found === null ? source.length : found.index;
      if (next > this.at) this.say(source.slice(this.at, next));
      this.at = next;
      if (found !== null) this.special(found[0], isOpen);
    }
    while (this.frames.length > 1) {
      const { mark, children } = this.top;
      if (isOpen && children.length && mark !== "[" && mark !== "![") this.end(mark);
      else this.flatten(this.frames.length - 2);
    }
    return nodesOf(this.top.children);
  }

  get top() {
    return this.frames[this.frames.length - 1];
  }

  say(text) {
    push(this.top.children, text);
  }

  add(node, length) {
    this.top.children.push(node);
    this.at += length;
  }

  plain(length) {
    this.say(this.source.slice(this.at, this.at + length));
    this.at += length;
  }

  special(mark, isOpen) {
    switch (mark[0]) {
      case "\\":
        return this.backslash();
      case "$":
        return this.formula("$$", "$$");
      case "`":
        return this.code(isOpen);
      case "\n":
        return this.add(h("br"), 1);
      case "<":
        return this.angle();
      case "&":
        return this.entity();
      case "h":
        return this.bareLink();
      case "!":
        if (this.source[this.at + 1] === "[") return this.begin("![");
        return this.plain(1);
      case "[":
        return this.begin("[");
      case "]":
        return this.bracket();
      default:
        return this.emphasis(mark);
    }
  }

  match(pattern) {
    pattern.lastIndex = this.at;
    return pattern.exec(this.source);
  }

  backslash() {
    const next = this.source[this.at + 1] ?? "";
    if (next === "(" || next === "[") return this.formula(`\\${next}`, next === "(" ? "\\)" : "\\]");
    if (/[!-/:-@[-`{-~]/.test(next)) {
      this.say(next);
      this.at += 2;
      return;
    }
    this.plain(1);
  }

  // A formula is shown as it is written: nothing in it is emphasis.
  formula(begin, end) {
    const stop = this.find(end, this.at + begin.length);
    if (stop < 0 || stop - this.at > MAX_FORMULA) return this.plain(begin.length);
    const text = this.source.slice(this.at + begin.length, stop);
    this.add(h("code", { class: "formula" }, ...visible(text)), stop + end.length - this.at);
  }

  find(text, from) {
    if (this.missing.has(text)) return -1;
    const found = this.source.indexOf(text, from);
    if (found < 0) this.missing.add(text);
    return found;
  }

  code(isOpen) {
    const { source, at } = this;
    let length = 1;
    while (source[at + length] === "`") length += 1;
    const mark = "`".repeat(length);
    let stop = this.find(mark, at + length);
    while (stop >= 0 && source[stop + length] === "`") {
      while (source[stop] === "`") stop += 1; // a longer run is another mark
      stop = this.find(mark, stop);
    }
    if (stop < 0 && !(isOpen && length < 3)) {
      this.missing.add(mark);
      return this.plain(length);
    }
    const end = stop < 0 ? source.length : stop;
    let text = source.slice(at + length, end).replaceAll("\n", " ");
    if (/^ .*\S.* $/.test(text)) text = text.slice(1, -1);
    this.add(h("code", {}, ...visible(text)), Math.min(end + length, source.length) - at);
  }

  angle() {
    const found = this.match(AUTOLINK);
    const address = found === null ? null : safeAddress(found[1]);
    if (address !== null) return this.add(link(address, ...visible(found[1])), found[0].length);
    const line = this.match(BREAK);
    if (line !== null) return this.add(h("br"), line[0].length);
    this.plain(1);
  }

  entity() {
    const found = this.match(ENTITY);
    if (found === null) return this.plain(1);
    const number = found[2] ? Number(found[2]) : parseInt(found[3] ?? "0", 16);
    const isPoint = number > 0 && number <= 0x10ffff && !(number >= 0xd800 && number < 0xe000);
    this.say(ENTITIES[found[1]] ?? (isPoint ? String.fromCodePoint(number) : "\ufffd"));
    this.at += found[0].length;
  }

  bareLink() {
    const found = this.match(BARE);
    if (found === null || this.frames.some((frame) => frame.mark === "[")) return this.plain(4);
    let text = found[0].replace(/[.,;:!?*_~\]]+$/, "");
    if (text.endsWith(")") && !text.includes("(")) text = text.slice(0, -1);
    const address = safeAddress(text);
    if (address === null) return this.plain(4);
    this.add(link(address, ...visible(text)), text.length);
  }

  begin(mark) {
    if (this.frames.length >= MAX_DEPTH) return this.plain(mark.length);
    this.frames.push({ mark, children: [] });
    this.at += mark.length;
  }

  // An end of brackets: a link, if an address follows. A picture is a link, too: nothing is fetched.
  bracket() {
    let level = this.frames.length - 1;
    while (level > 0 && !this.frames[level].mark.endsWith("[")) level -= 1;
    if (level === 0) return this.plain(1);
    this.at += 1;
    const found = this.match(TARGET);
    const address = found === null ? null : safeAddress(found[1] ?? found[2]);
    this.flatten(level);
    if (address === null || this.top.hasLink) {
      this.flatten(level - 1);
      return this.say("]");
    }
    const { mark, children } = this.frames.pop();
    for (const frame of this.frames) if (frame.mark.endsWith("[")) frame.hasLink = true;
    if (mark === "![") children.unshift("picture: ");
    this.add(link(address, ...nodesOf(children.length ? children : [address])), found[0].length);
  }

  emphasis(character) {
    const { source, at } = this;
    let length = 1;
    while (source[at + length] === character) length += 1;
    const before = source[at - 1] ?? " ";
    const after = source[at + length] ?? " ";
    let canBegin = !SPACE.test(after);
    let canEnd = !SPACE.test(before);
    if (character === "_") {
      canBegin &&= !WORD.test(before);
      canEnd &&= !WORD.test(after);
    }
    if (length > 3 || (character === "~" && length !== 2)) return this.plain(length);
    let left = length;
    while (left > 0 && canEnd) {
      const level = this.opener(character, left);
      if (level < 0) break;
      left -= this.frames[level].mark.length;
      this.flatten(level);
      this.end(this.top.mark);
    }
    this.at += length - left;
    while (left > 0) {
      const size = Math.min(left, 2);
      if (canBegin) this.begin(character.repeat(size));
      else this.plain(size);
      left -= size;
    }
  }

  // The innermost mark that so many characters may end; -1 if there is none.
  opener(character, length) {
    for (let level = this.frames.length - 1; level > 0; level -= 1) {
      const { mark, children } = this.frames[level];
      if (mark[0] === character && mark.length <= length && children.length) return level;
    }
    return -1;
  }

  end(mark) {
    const { children } = this.frames.pop();
    const tag = mark[0] === "~" ? "del" : mark.length === 2 ? "strong" : "em";
    this.top.children.push(h(tag, {}, ...nodesOf(children)));
  }

  // Make the marks deeper than `level` plain text again.
  flatten(level) {
    while (this.frames.length - 1 > level) {
      const { mark, children } = this.frames.pop();
      this.say(mark);
      for (const child of children) push(this.top.children, child);
    }
  }
}

// Children are nodes and texts. Texts that meet become one: a node for each mark would cost too much.
function push(children, child) {
  const last = children.length - 1;
  if (typeof child === "string" && typeof children[last] === "string") children[last] += child;
  else children.push(child);
}

function nodesOf(children) {
  return children.flatMap((child) => (typeof child === "string" ? visible(child) : [child]));
}

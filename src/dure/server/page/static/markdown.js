// What does a text in Markdown look like, while it still comes? Each whole line is read once; what it
// means is put into the page as nodes. The line that is not whole yet is read as if it were, and taken
// back when more of it comes. So a text costs what it is long, whatever is in it.

import { copyButton, h } from "./dom.js";
import { highlighter } from "./highlight.js";
import { renderInline } from "./inline.js";

const MAX_DEPTH = 16; // of quotes, lists and their items; what is deeper is plain text
const MAX_LINE = 4096; // characters; a longer line is read in pieces
const MAX_PARAGRAPH = 8192; // characters whose emphasis is looked for together
const MAX_COLUMNS = 64;
const MAX_TEXT = 4_000_000; // characters; what comes after is shown as it is

const QUOTE = /^ {0,3}> ?/;
const HEADING = /^ {0,3}(#{1,6})(?=[ \t]|$)/;
const FENCE = /^( {0,12})(`{3,}|~{3,})[ \t]*([^`]{0,200})$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const ITEM = /^( {0,12})([-*+]|\d{1,9}[.)])( {1,4}(?! )|(?= {5})|$)/;
const UNDERLINE = /^ {0,3}=+ *$/; // one of dashes is a rule: so models mean it
const DELIMITERS = /^ {0,3}\|?(?: *:?-{1,200}:? *\|){0,64} *:?-{1,200}:? *\|? *$/;
const UNCLEAR = /^ *(?:[-*+_`~#>=|]{1,3}|\d{1,9}[.)]?)$/; // a mark, and nothing behind it yet
const TASK = /^\[([ xX])\] /;

export class Markdown {
  // Fill `root` with what is appended.
  constructor(root) {
    this.root = root;
    this.partial = ""; // the line that is not whole yet
    this.length = 0;
    this.stack = [{ type: "root", node: root }];
    this.leaf = null; // the paragraph, code or table that lines are added to
    this.isGlued = false; // the last line was a piece, and the next one goes on with it
    this.undo = null; // what takes the partial line back
  }

  append(text) {
    this.takeBack();
    this.length += text.length;
    if (this.length > MAX_TEXT) return this.appendPlain(text);
    const lines = (this.partial + text).split("\n");
    this.partial = lines.pop();
    for (const line of lines) this.whole(line);
    while (this.partial.length > MAX_LINE) {
      this.readLine(this.partial.slice(0, MAX_LINE));
      this.isGlued = true;
      this.partial = this.partial.slice(MAX_LINE);
    }
    if (this.partial && !UNCLEAR.test(this.partial)) this.tryPartial();
    if (this.leaf?.type === "paragraph") this.showParagraph(this.leaf, true);
  }

  end() {
    this.takeBack();
    if (this.partial) this.whole(this.partial);
    this.partial = "";
    this.closeLeaf();
  }

  whole(line) {
    const text = line.endsWith("\r") ? line.slice(0, -1) : line;
    for (let at = 0; at === 0 || at < text.length; at += MAX_LINE) {
      if (at > 0) this.isGlued = true;
      this.readLine(text.slice(at, at + MAX_LINE));
    }
    this.isGlued = false;
  }

  appendPlain(text) {
    if (this.leaf?.type !== "plain") {
      this.closeLeaf();
      const node = h("pre", { class: "plain" });
      this.root.append(node);
      this.leaf = { type: "plain", node };
    }
    this.leaf.node.append(this.partial + text);
    this.partial = "";
  }

  // Every change of the page while the partial line is read is noted, and so is what was before.
  tryPartial() {
    this.undo = [];
    this.before = { stack: this.stack.slice(), leaf: this.leaf && { ...this.leaf }, isGlued: this.isGlued };
    this.readLine(this.partial);
  }

  takeBack() {
    if (this.undo === null) return;
    for (const step of this.undo.reverse()) step();
    this.undo = null;
    Object.assign(this, this.before);
  }

  add(parent, ...nodes) {
    parent.append(...nodes);
    this.undo?.push(() => nodes.forEach((node) => node.remove()));
  }

  replace(old, node) {
    old.replaceWith(node);
    this.undo?.push(() => node.replaceWith(old));
  }

  readLine(line) {
    if (this.isGlued && this.leaf !== null && this.leaf.type !== "table") {
      return this.leaf.type === "code" ? this.addCode(line) : this.addText(line);
    }
    let text = line.replace(/^[ \t]+/, (space) => space.replaceAll("\t", "    "));
    let depth;
    [depth, text] = this.matchContainers(text);
    const isWithin = depth === this.stack.length;
    if (this.leaf?.type === "code") {
      if (isWithin) return this.readCode(text);
      this.closeLeaf();
    }
    if (!text.trim()) return this.readBlank(depth);
    const isLazy = !isWithin && this.leaf?.type === "paragraph";
    const before = this.leaf;
    for (;;) {
      const rest = this.beginContainer(text, depth);
      if (rest === null) break;
      text = rest;
      depth = this.stack.length;
      if (!text.trim()) return;
    }
    if (this.beginLeaf(text, depth)) return;
    if (this.leaf !== null && this.leaf === before && (isLazy || depth === this.stack.length)) {
      return this.goOn(text);
    }
    this.closeTo(depth);
    this.openParagraph(text);
  }

  // Which of the open quotes and items is this line part of? Returns how many, and the rest of it.
  matchContainers(line) {
    let text = line;
    let depth = 1;
    while (depth < this.stack.length) {
      const container = this.stack[depth];
      if (container.type === "quote") {
        const mark = QUOTE.exec(text);
        if (mark === null) break;
        text = text.slice(mark[0].length);
      } else if (container.type === "item") {
        if (text.trim() && !text.startsWith(" ".repeat(container.indent))) break;
        text = text.slice(Math.min(container.indent, text.length - text.trimStart().length));
      } else if (text.trim()) {
        const item = this.stack[depth + 1]; // of this list, unless its last one is over
        if (item === undefined || !text.startsWith(" ".repeat(item.indent))) break;
      }
      depth += 1;
    }
    return [depth, text];
  }

  readBlank(depth) {
    const quote = this.stack.findIndex((each, level) => level >= depth && each.type === "quote");
    this.closeLeaf();
    if (quote >= 0) this.stack.length = quote;
  }

  // Begin a quote or an item if the text does; returns what follows its mark, or null.
  beginContainer(text, depth) {
    if (this.stack.length >= MAX_DEPTH) return null;
    const quote = QUOTE.exec(text);
    if (quote !== null) {
      this.closeTo(depth);
      this.closeList();
      this.open("quote", h("blockquote"));
      return text.slice(quote[0].length);
    }
    const item = ITEM.exec(text);
    if (item === null || RULE.test(text)) return null;
    const [mark, space, sign, gap] = item;
    const rest = text.slice(mark.length);
    const isOrdered = sign.length > 1;
    const isWithin = this.leaf?.type === "paragraph" && depth === this.stack.length;
    if (isWithin && (!rest.trim() || (isOrdered && parseInt(sign, 10) !== 1))) return null;
    this.closeTo(depth);
    this.openList(isOrdered, sign);
    this.open("item", h("li"), { indent: space.length + sign.length + Math.max(gap.length, 1) });
    const task = TASK.exec(rest);
    return task === null ? rest : `${task[1] === " " ? "☐" : "☑"} ${rest.slice(task[0].length)}`;
  }

  openList(isOrdered, sign) {
    const end = isOrdered ? sign.slice(-1) : sign;
    const last = this.stack[this.stack.length - 1];
    if (last.type === "list" && last.end === end) return;
    if (last.type === "list") this.stack.pop();
    const start = isOrdered ? parseInt(sign, 10) : 1;
    const node = isOrdered ? h("ol", start === 1 ? {} : { start: String(start) }) : h("ul");
    this.open("list", node, { end });
  }

  open(type, node, more = {}) {
    this.closeLeaf();
    this.add(this.stack[this.stack.length - 1].node, node);
    this.stack.push({ type, node, ...more });
  }

  // Close what this line is no part of. A list stays open as long as an item may follow.
  closeTo(depth) {
    if (depth < this.stack.length || this.leaf?.type !== "paragraph") this.closeLeaf();
    const isList = this.stack[depth]?.type === "list";
    this.stack.length = Math.min(this.stack.length, isList ? depth + 1 : depth);
  }

  closeList() {
    if (this.stack[this.stack.length - 1].type === "list") this.stack.pop();
  }

  beginLeaf(text, depth) {
    const leaf = this.leaf;
    if (leaf?.type === "paragraph" && depth === this.stack.length) {
      if (UNDERLINE.test(text)) {
        this.replaceParagraph(h("h1"));
        return true;
      }
      if (leaf.lines === 1 && text.includes("-") && DELIMITERS.test(text) && this.beginTable(text)) {
        return true;
      }
    }
    const heading = HEADING.exec(text);
    const fence = heading === null ? FENCE.exec(text) : null;
    const isRule = heading === null && fence === null && RULE.test(text);
    if (heading === null && fence === null && !isRule) return false;
    this.closeTo(depth);
    this.closeLeaf();
    this.closeList();
    const parent = this.stack[this.stack.length - 1].node;
    if (isRule) this.add(parent, h("hr"));
    else if (fence !== null) this.openCode(parent, fence);
    else {
      const node = h(`h${heading[1].length}`, { dir: "auto" });
      let title = text.slice(heading[0].length).trim();
      const bare = title.replace(/#{1,100}$/, "");
      if (bare === "" || bare.endsWith(" ")) title = bare.trim();
      renderInline(node, title);
      this.add(parent, node);
    }
    return true;
  }

  goOn(text) {
    if (this.leaf.type !== "table") return this.addText(text.trim());
    if (text.includes("|")) return this.addRow(text);
    this.closeLeaf();
    this.openParagraph(text);
  }

  openParagraph(text) {
    this.closeLeaf();
    this.closeList();
    const node = h("p", { dir: "auto" });
    this.add(this.stack[this.stack.length - 1].node, node);
    this.leaf = { type: "paragraph", node, target: node, source: text.trim(), lines: 1 };
  }

  addText(text) {
    const leaf = this.leaf;
    if (leaf.type !== "paragraph") return;
    leaf.source += this.isGlued ? text : `\n${text}`;
    leaf.lines += 1;
    if (leaf.source.length < MAX_PARAGRAPH) return;
    this.showParagraph(leaf, false);
    leaf.target = h("span");
    leaf.source = "";
    this.add(leaf.node, leaf.target);
  }

  showParagraph(leaf, isOpen) {
    renderInline(leaf.target, leaf.source, isOpen);
  }

  replaceParagraph(node) {
    const { leaf } = this;
    node.dir = "auto";
    renderInline(node, leaf.source);
    this.replace(leaf.node, node);
    this.leaf = null;
  }

  closeLeaf() {
    if (this.leaf?.type === "paragraph") this.showParagraph(this.leaf, false);
    this.leaf = null;
  }

  openCode(parent, fence) {
    const [, space, mark, about] = fence;
    const language = about.trim().split(/[\s{,]/)[0].slice(0, 30);
    const code = h("code");
    const copy = copyButton(() => code.textContent);
    copy.setAttribute("aria-label", language ? `Copy the ${language} code` : "Copy the code");
    const label = h("span", { class: "language" }, language);
    const frame = h("div", { class: "code" }, h("div", { class: "code-head" }, label, copy));
    frame.append(h("pre", { tabindex: "0", dir: "ltr" }, code));
    this.add(parent, frame);
    const colours = highlighter(language);
    const state = colours.begin;
    this.leaf = { type: "code", code, mark, indent: space.length, colours, state, lines: 0 };
  }

  readCode(text) {
    const { mark, indent } = this.leaf;
    const end = FENCE.exec(text);
    if (end !== null && end[2][0] === mark[0] && end[2].length >= mark.length && !end[3].trim()) {
      this.leaf = null;
      return;
    }
    this.addCode(text.slice(Math.min(indent, text.length - text.trimStart().length)));
  }

  addCode(text) {
    const leaf = this.leaf;
    const made = leaf.colours.line(text, leaf.state);
    if (leaf.lines > 0 && !this.isGlued) made.nodes.unshift(document.createTextNode("\n"));
    this.add(leaf.code, ...made.nodes);
    leaf.state = made.state;
    leaf.lines += 1;
  }

  // Make the paragraph of one line a table's head, if the line of dashes has as many columns.
  beginTable(delimiters) {
    const marks = cells(delimiters);
    const names = cells(this.leaf.source);
    if (marks.length !== names.length || !this.leaf.source.includes("|")) return false;
    const sides = marks.map((mark) => {
      const isRight = mark.endsWith(":");
      return mark.startsWith(":") ? (isRight ? "center" : "start") : isRight ? "end" : "start";
    });
    const body = h("tbody");
    const head = h("thead", {}, row("th", names, sides));
    const table = h("div", { class: "table", tabindex: "0" }, h("table", {}, head, body));
    this.replace(this.leaf.node, table);
    this.leaf = { type: "table", body, sides };
    return true;
  }

  addRow(text) {
    this.add(this.leaf.body, row("td", cells(text), this.leaf.sides));
  }
}

function row(tag, texts, sides) {
  const made = h("tr");
  sides.forEach((side, column) => {
    const cell = h(tag, { class: `to-${side}`, dir: "auto" });
    renderInline(cell, texts[column] ?? "");
    made.append(cell);
  });
  return made;
}

// The cells of a table's line. A bar after a backslash, or in code, is none.
function cells(line) {
  const text = line.trim().replace(/^\|/, "");
  const found = [""];
  let isCode = false;
  for (let at = 0; at < text.length && found.length <= MAX_COLUMNS; at += 1) {
    const character = text[at];
    if (character === "\\" && text[at + 1] === "|") {
      found[found.length - 1] += "|";
      at += 1;
    } else if (character === "|" && !isCode) found.push("");
    else {
      if (character === "`") isCode = !isCode && text.indexOf("`", at + 1) >= 0;
      found[found.length - 1] += character;
    }
  }
  if (found.length > 1 && !found[found.length - 1].trim()) found.pop();
  return found.map((each) => each.trim());
}

// Fill a new element with a whole text.
export function rendered(text) {
  const node = h("div", { class: "markdown" });
  const markdown = new Markdown(node);
  markdown.append(text);
  markdown.end();
  return node;
}

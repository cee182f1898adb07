// Which words of a line of code are keywords, texts, numbers and comments? A line at a time, by families.

import { h, visible } from "./dom.js";

const MAX_LINE = 2000; // characters; a longer line is plain
const MAX_PIECES = 20_000; // of one block; what comes after is plain

const words = (text) => new Set(text.split(" "));

const C_WORDS =
  "auto bool break case catch char class const continue default delete do double else enum extern false final float for goto if int interface long namespace new null nullptr private protected public return short signed sizeof static struct super switch template this throw true try typedef typename union unsigned using virtual void volatile while";
const SLASHES = { line: ["//"], block: [["/*", "*/"]], quotes: ['"', "'"] };

const FAMILIES = {
  python: {
    line: ["#"],
    block: [],
    texts: ['"""', "'''"],
    quotes: ['"', "'"],
    words: words(
      "and as assert async await break case class continue def del elif else except False finally for from global if import in is lambda match None nonlocal not or pass raise return self True try type while with yield",
    ),
  },
  script: {
    ...SLASHES,
    texts: ["`"],
    words: words(
      "abstract any as async await boolean break case catch class const continue debugger declare default delete do else enum export extends false finally for from function get if implements import in instanceof interface keyof let namespace never new null number of private protected public readonly return set static string super switch this throw true try type typeof undefined unknown var void while yield",
    ),
  },
  c: {
    ...SLASHES,
    words: words(
      `${C_WORDS} abstract async await base byte concept consteval constexpr constinit decltype decimal def explicit export extends finally foreach friend func fun get immutable implements import in inline instanceof internal is let lock module mutable noexcept object operator out override package params readonly ref requires sealed set size_t string strictfp synchronized throws transient uint uint8_t uint16_t uint32_t uint64_t int8_t int16_t int32_t int64_t val var when where with yield`,
    ),
  },
  rust: {
    ...SLASHES,
    quotes: ['"'],
    words: words(
      "as async await bool break char const continue crate dyn else enum extern f32 f64 false fn for i16 i32 i64 i8 if impl in isize let loop match mod move mut pub ref return Self self static str String struct super trait true type u16 u32 u64 u8 unsafe use usize Vec where while",
    ),
  },
  go: {
    ...SLASHES,
    texts: ["`"],
    words: words(
      "any bool break byte case chan const continue default defer else error fallthrough false float64 for func go goto if import int int64 interface len make map nil package range return rune select string struct switch true type uint64 var",
    ),
  },
  shell: {
    line: ["#"],
    block: [],
    quotes: ['"', "'"],
    words: words(
      "alias case cd do done echo elif else esac eval exec exit export fi for function if in local read return select set shift source sudo then time trap unset until while",
    ),
  },
  sql: {
    line: ["--"],
    block: [["/*", "*/"]],
    quotes: ["'", '"'],
    isCaseless: true,
    words: words(
      "add all alter and as asc begin between bigint boolean by case cast char check column commit constraint count create cross date default delete desc distinct drop else end exists foreign from full group having if in index inner insert int integer into is join key left like limit not null numeric offset on or order outer over partition primary references right rollback select set sum table text then timestamp to union unique update using values varchar view when where with",
    ),
  },
  data: {
    line: ["#", ";"],
    block: [],
    quotes: ['"', "'"],
    words: words("true false null yes no on off"),
  },
  json: { line: ["//"], block: [], quotes: ['"'], words: words("true false null") },
  style: {
    line: [],
    block: [["/*", "*/"]],
    quotes: ['"', "'"],
    words: words("important media import keyframes supports font-face from to auto none inherit initial var calc"),
  },
  markup: { line: [], block: [["<!--", "-->"]], quotes: ['"', "'"], words: words("") },
  lua: {
    line: ["--"],
    block: [["--[[", "]]"]],
    quotes: ['"', "'"],
    words: words(
      "and break do else elseif end false for function goto if in local nil not or repeat return then true until while",
    ),
  },
  ruby: {
    line: ["#"],
    block: [],
    quotes: ['"', "'"],
    words: words(
      "alias and begin break case class def defined do else elsif end ensure false for if in module next nil not or private puts redo require rescue retry return self super then true undef unless until when while yield",
    ),
  },
};

const NAMES = {
  python: "python py python3 py3 ipython",
  script: "javascript js jsx mjs cjs typescript ts tsx node",
  c: "c h cpp c++ cc cxx hpp cuda cu csharp cs c# java kotlin kt swift php scala dart objc objective-c glsl hlsl zig",
  rust: "rust rs",
  go: "go golang",
  shell: "bash sh shell zsh fish console terminal powershell ps1 dockerfile docker makefile make cmake",
  sql: "sql mysql postgresql postgres sqlite plsql",
  data: "yaml yml toml ini conf properties env",
  json: "json jsonc json5 jsonl",
  style: "css scss less",
  markup: "html xml svg xhtml vue",
  lua: "lua haskell hs",
  ruby: "ruby rb perl r elixir ex julia jl",
};

const FAMILY_OF = new Map(
  Object.entries(NAMES).flatMap(([family, names]) => names.split(" ").map((name) => [name, family])),
);

const TOKEN = /[\p{L}_$@][\p{L}\p{N}_$]*|\d[\w.]*|\s+|./guy;

// Returns a highlighter of one block in that language. Its state is a value: keep it and go back to it.
export function highlighter(language) {
  const name = language.toLowerCase();
  if (name === "diff" || name === "patch") return { begin: "", line: diffLine };
  const family = FAMILIES[FAMILY_OF.get(name)];
  if (family === undefined) return { begin: "", line: plainLine };
  let pieces = 0;
  return {
    begin: "",
    // Takes a line and the state before it; returns its nodes and the state after it.
    line(text, state) {
      if (text.length > MAX_LINE || pieces > MAX_PIECES) return { nodes: visible(text), state };
      const made = codeLine(text, state, family);
      pieces += made.nodes.length;
      return made;
    },
  };
}

function plainLine(text, state) {
  return { nodes: visible(text), state };
}

function diffLine(text, state) {
  const kind = { "+": "added", "-": "removed", "@": "comment" }[text[0]];
  return { nodes: kind === undefined ? visible(text) : [token(kind, text)], state };
}

function token(kind, text) {
  return h("span", { class: `hl-${kind}` }, ...visible(text));
}

// The state is "" or the mark that ends what an earlier line began.
function codeLine(text, state, family) {
  const nodes = [];
  let plain = "";
  let at = 0;
  const say = (kind, end) => {
    if (plain) nodes.push(...visible(plain));
    plain = "";
    if (end > at) nodes.push(token(kind, text.slice(at, end)));
    at = end;
  };
  if (state) {
    const stop = text.indexOf(state);
    const kind = family.texts?.includes(state) ? "string" : "comment";
    say(kind, stop < 0 ? text.length : stop + state.length);
    if (stop < 0) return { nodes, state };
  }
  while (at < text.length) {
    if (family.line.some((mark) => text.startsWith(mark, at)) && isComment(text, at, family)) {
      say("comment", text.length);
      break;
    }
    const block = family.block.find(([mark]) => text.startsWith(mark, at));
    const open = block ?? family.texts?.filter((mark) => text.startsWith(mark, at)).map((m) => [m, m])[0];
    if (open !== undefined) {
      const stop = text.indexOf(open[1], at + open[0].length);
      say(block ? "comment" : "string", stop < 0 ? text.length : stop + open[1].length);
      if (stop < 0) return { nodes, state: open[1] };
    } else if (family.quotes.includes(text[at])) {
      say("string", endOfText(text, at));
    } else {
      TOKEN.lastIndex = at;
      const word = TOKEN.exec(text)?.[0] ?? text[at];
      const kind = kindOf(word, text, at + word.length, family);
      if (kind) say(kind, at + word.length);
      else {
        plain += word;
        at += word.length;
      }
    }
  }
  say("", at);
  return { nodes, state: "" };
}

// "#" begins a comment at the start of a word alone: not in $#, a colour or an address.
function isComment(text, at, family) {
  return family.line[0] !== "#" || at === 0 || /\s/.test(text[at - 1]);
}

function endOfText(text, at) {
  const quote = text[at];
  for (let end = at + 1; end < text.length; end += 1) {
    if (text[end] === "\\") end += 1;
    else if (text[end] === quote) return end + 1;
  }
  return text.length;
}

function kindOf(word, text, end, family) {
  if (family.words.has(family.isCaseless ? word.toLowerCase() : word)) return "keyword";
  if (/^\d/.test(word)) return "number";
  if (family === FAMILIES.markup) {
    return /<\/?$/.test(text.slice(Math.max(0, end - word.length - 2), end - word.length)) ? "keyword" : null;
  }
  if (/^[\p{L}_]/u.test(word) && text[end] === "(") return "call";
  if (family === FAMILIES.data && text[end] === ":") return "call";
  return /^\p{Lu}\p{L}*\p{Ll}/u.test(word) ? "type" : null;
}

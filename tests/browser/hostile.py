"""A hundred answers that no model should write, all of them harmless.

Each that runs as a program would set `window.owned`, and each that is fetched would be a
request to example.invalid, which is nobody's.
"""

from __future__ import annotations

from collections.abc import Iterator

OWN = "window.owned=1"
AWAY = "https://example.invalid/x"


def html() -> Iterator[str]:
    yield f"<script>{OWN}</script>"
    yield f"<SCRIPT SRC={AWAY}></SCRIPT>"
    yield f"<img src=x onerror='{OWN}'>"
    yield f'<img src="{AWAY}.png" srcset="{AWAY}2.png 2x">'
    yield f"<svg onload='{OWN}'><script>{OWN}</script></svg>"
    yield f'<iframe src="{AWAY}"></iframe><iframe srcdoc="<script>parent.{OWN}</script>">'
    yield f'<object data="{AWAY}"></object><embed src="{AWAY}">'
    yield f'<link rel="stylesheet" href="{AWAY}.css"><style>@import "{AWAY}.css";</style>'
    yield f'<meta http-equiv="refresh" content="0;url={AWAY}">'
    yield f'<base href="{AWAY}/"><form action="{AWAY}"><input autofocus onfocus="{OWN}"></form>'
    yield f"<details open ontoggle='{OWN}'>x</details>"
    yield f"<video src='{AWAY}' onerror='{OWN}' autoplay></video><audio src='{AWAY}'>"
    yield f"<math><mtext><table><mglyph><style><img src=x onerror='{OWN}'>"
    yield f"<noscript><p title='</noscript><img src=x onerror={OWN}>'>"
    yield f"<body onload='{OWN}'><div style='background:url({AWAY})'>x</div>"
    yield f"<template><script>{OWN}</script></template></textarea></title><script>{OWN}</script>"
    yield f"<a href='javascript:{OWN}'>x</a><a href='{AWAY}' ping='{AWAY}'>y</a>"
    yield f"<!--><script>{OWN}</script--><![CDATA[<script>{OWN}</script>]]>"
    yield f"```html\n<script>{OWN}</script>\n```\n\n`<img src=x onerror={OWN}>`"
    yield f'```"><script>{OWN}</script>\ncode\n```'
    yield f"| <script>{OWN}</script> | <img src=x onerror={OWN}> |\n|--|--|\n| <svg onload={OWN}> |"
    yield f"# <script>{OWN}</script>\n> <img src={AWAY}>\n- <iframe src={AWAY}>"
    yield f"&lt;script&gt;{OWN}&lt;/script&gt; &#60;img src=x onerror={OWN}&#62; &#x3c;b&#x3e;"
    yield f"[<img src=x onerror={OWN}>]({AWAY})"
    yield '<div id="input"></div><form id="composer"><input name="body"></form><b id="log">x</b>'


def links() -> Iterator[str]:
    for address in (
        f"javascript:{OWN}",
        f"JaVaScRiPt:{OWN}",
        f"java\tscript:{OWN}",
        f"java&#10;script:{OWN}",
        f" javascript:{OWN}",
        f"\x01javascript:{OWN}",
        f"data:text/html,<script>{OWN}</script>",
        f"vbscript:{OWN}",
        "file:///nowhere",
        f"blob:{AWAY}",
        f"view-source:{AWAY}",
        "//example.invalid/x",
        "/v1/models",
        "https://user:word@example.invalid/",
        f'https://example.invalid/" onmouseover="{OWN}',
        f"https://example.invalid/' onclick='{OWN}",
        "https://example.invalid/\u202egnp.exe",
        "intent://x#Intent;scheme=http;end",
        "https://" + "a" * 5000,
        "mailto:someone@example.invalid?body=<script>",
    ):
        yield f"[click]({address}) <{address}> [a]: {address}"
    yield f"![picture]({AWAY}.png) ![x](data:image/svg+xml,<svg onload={OWN}>)"
    yield f"![p](javascript:{OWN}) [![in]({AWAY}.png)]({AWAY})"
    yield f'[a]({AWAY} "t" onclick="{OWN}") [b]({AWAY} \'x\' onx={OWN})'
    yield f"[[[[[[a]({AWAY})]({AWAY})]({AWAY})]({AWAY})]({AWAY})]({AWAY})"
    yield f"{AWAY}\"onclick={OWN} {AWAY}<script> www.example.invalid {AWAY}'){OWN}"


def characters() -> Iterator[str]:
    yield "".join(map(chr, range(32))) + "\x7f" + "".join(map(chr, range(0x80, 0xA0)))
    yield "\x00" * 1000 + "<b>"
    yield "if (isAdmin\u202e \u2066// check\u2069 \u2066) {\u2069"
    yield "```js\nconst a = 1; /*\u202e } \u2066if (admin)\u2069 \u2066 begin */\n```"
    yield "\u202e" * 2000 + "abc"
    yield "a" + "\u0301" * 5000 + "b"
    yield "\ud83d" + "x" + "\udc00" + "\ufffe\uffff"
    yield "\u200b" * 3000 + "\ufeff" * 3000
    yield "\r\n\r\x0b\x0c\u2028\u2029\x85" * 300
    yield "\x1b[31mred\x1b[0m \x1b]8;;https://example.invalid\x07link\x1b]8;;\x07"
    yield "👩‍👩‍👧‍👦" * 2000
    yield "ﷺ" * 3000 + "𒐫" * 1000
    yield "\u0e49" * 10_000
    yield "| \x00 | \x1b |\n|--|--|\n| \u202e | \u2066 |"
    yield "data: [DONE]\n\ndata: {}\n\nevent: x\n\n: comment\n\n"


def long() -> Iterator[str]:
    yield "x" * 400_000
    yield "a b " * 100_000
    yield "```\n" + "y" * 400_000 + "\n```"
    yield "```js\n" + "f(1);" * 40_000 + "\n```"
    yield "```python\n" + "x = 1 # c\n" * 6000 + "```"
    yield "\n" * 50_000 + "end"
    yield "line\n" * 20_000
    yield "- item\n" * 5000
    yield "# heading\n" * 3000
    yield "| a | b |\n|---|---|\n" + "| 1 | 2 |\n" * 3000
    yield "한국어" * 50_000
    yield "`" * 100_000
    yield "```" * 3000
    yield "https://example.invalid/" + "a/" * 50_000
    yield "word " * 20 + "\n\n" + ("paragraph of some words\n\n" * 4000)


def bombs() -> Iterator[str]:
    yield "*" * 50_000
    yield "*a " * 15_000
    yield "**a** " * 15_000
    yield "*a_ " * 15_000
    yield "_*" * 20_000 + "x" + "*_" * 20_000
    yield "[" * 50_000
    yield "]" * 50_000
    yield "[a](" * 15_000
    yield "![" * 20_000 + "](" * 20_000
    yield "[a](" + " " * 20_000 + "b"
    yield ">" * 20_000 + "x"
    yield "> " * 5000 + "x\n" + "> " * 5000 + "y"
    yield "- " * 5000 + "x"
    yield "\n".join(" " * (2 * depth) + "- x" for depth in range(400))
    yield "\n".join("1. " * depth + "x" for depth in range(200))
    yield "|" * 20_000 + "\n" + "|-" * 20_000 + "|\n" + "|x" * 20_000
    yield "`a``b```c````d" * 5000
    yield "\\" * 50_000
    yield "&#x26;" * 20_000
    yield "<" * 50_000
    yield "$$" * 20_000 + "$" * 101
    yield "\\(" * 20_000 + "\\[" * 20_000


ANSWERS = [*html(), *links(), *characters(), *long(), *bombs()]

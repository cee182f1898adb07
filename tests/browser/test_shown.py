"""What a text in Markdown looks like, in whatever pieces it comes."""

from __future__ import annotations

import re

import pytest
from acts import ask, asked, done, markdown

CODE_HEAD = re.compile(r'<div class="code-head">.*?</div>')
NOISE = re.compile(r' (?:dir|tabindex|title|target|rel)="[^"]*"')

CASES = {
    "a **b** *c* _d_ ~~e~~ `f`": "<p>a <strong>b</strong> <em>c</em> <em>d</em> <del>e</del> "
    "<code>f</code></p>",
    "***ab*** **a *b* c**": "<p><strong><em>ab</em></strong> <strong>a <em>b</em> c</strong></p>",
    "snake_case_name 2 * 3 * 4 **": "<p>snake_case_name 2 * 3 * 4 **</p>",
    '**"강조"**는 **中文。**后': '<p><strong>"강조"</strong>는 <strong>中文。</strong>后</p>',
    "a\nb\n\nc": "<p>a<br>b</p><p>c</p>",
    "# A #\n### B": "<h1>A</h1><h3>B</h3>",
    "A\n===\ntext\n---": "<h1>A</h1><p>text</p><hr>",
    "- a\n- b\n  - c\n    - d\n- e": "<ul><li><p>a</p></li><li><p>b</p><ul><li><p>c</p><ul><li>"
    "<p>d</p></li></ul></li></ul></li><li><p>e</p></li></ul>",
    "3. a\n4. b\n\n   c\n\nd": '<ol start="3"><li><p>a</p></li><li><p>b</p><p>c</p></li></ol>'
    "<p>d</p>",
    "- [ ] a\n- [x] b": "<ul><li><p>☐ a</p></li><li><p>☑ b</p></li></ul>",
    "> a\n> - b\n>\n> c\n\nd": "<blockquote><p>a</p><ul><li><p>b</p></li></ul><p>c</p></blockquote>"
    "<p>d</p>",
    "a | b\n--|:-:\n1 | `x|y`\n\\| | 2\nend": '<div class="table"><table><thead><tr>'
    '<th class="to-start">a</th><th class="to-center">b</th></tr></thead><tbody><tr>'
    '<td class="to-start">1</td><td class="to-center"><code>x|y</code></td></tr><tr>'
    '<td class="to-start">|</td><td class="to-center">2</td></tr></tbody></table></div><p>end</p>',
    "```\na\n\n  b\n```\nc": '<div class="code"><pre><code>a\n\n  b</code></pre></div><p>c</p>',
    "1. x\n   ```\n   a\n     b\n   ```\n2. y": '<ol><li><p>x</p><div class="code"><pre><code>'
    "a\n  b</code></pre></div></li><li><p>y</p></li></ol>",
    "````\n```\n````": '<div class="code"><pre><code>```</code></pre></div>',
    "~~~\nopen": '<div class="code"><pre><code>open</code></pre></div>',
    "[a](https://e.org/x_(y) 't') <https://e.org> https://e.org/a_b_c, (https://e.org)": "<p>"
    '<a href="https://e.org/x_(y)">a</a> <a href="https://e.org/">https://e.org</a> '
    '<a href="https://e.org/a_b_c">https://e.org/a_b_c</a>, '
    '(<a href="https://e.org/">https://e.org</a>)</p>',
    "[**b**](mailto:a@e.org) [c](no) [d]": '<p><a href="mailto:a@e.org"><strong>b</strong></a> '
    "[c](no) [d]</p>",
    r"\*a\* &amp; &lt; \(x_1*y_2*z\) $$a_b$$ a<br>b": "<p>*a* &amp; &lt; "
    '<code class="formula">x_1*y_2*z</code> <code class="formula">a_b</code> a<br>b</p>',
    "``a`b`` `c": "<p><code>a`b</code> `c</p>",
    "text\n* * *\n- - -": "<p>text</p><hr><hr>",
    "```js\nlet a = 'x'; // c\n```": '<div class="code"><pre><code><span class="hl-keyword">let'
    '</span> a = <span class="hl-string">\'x\'</span>; <span class="hl-comment">// c</span></code>'
    "</pre></div>",
    '```python\n"""a\nb""" + 1\n```': '<div class="code"><pre><code><span class="hl-string">"""a'
    '</span>\n<span class="hl-string">b"""</span> + <span class="hl-number">1</span></code>'
    "</pre></div>",
    "```diff\n+a\n-b\n c\n```": '<div class="code"><pre><code><span class="hl-added">+a</span>\n'
    '<span class="hl-removed">-b</span>\n c</code></pre></div>',
}


def plain(html: str) -> str:
    """HTML without the copy button and what each element of a kind has."""
    return NOISE.sub("", CODE_HEAD.sub("", html))


def test_markdown_means_what_its_writers_mean(page) -> None:
    for text, html in CASES.items():
        assert html == plain(markdown(page, text)), text


def test_a_text_looks_the_same_in_whatever_pieces_it_comes(page) -> None:
    """Whole, and character by character: what was shown too early is taken back."""
    long = "word " * 4000
    for text in (
        *CASES,
        "\n\n".join(CASES),
        long,
        f"- {long}",
        f"```\n{long}\n```",
        "a\r\n\r\nb\r\n",
    ):
        whole = markdown(page, text)
        for size in (1, 2, 7) if len(text) < 5000 else (1000,):
            assert whole == markdown(page, text, size), (size, text[:200])


@pytest.mark.parametrize("text", ["```py\nx = 1\ny = 2\n```", "```\nx = 1\ny = 2"])
def test_code_is_copied_as_it_was_written(page, server, text) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    server.say(text)
    asked(page, "Code?")
    page.click(".code .copy")
    page.wait_for_selector('.code .copy:has-text("Copied")')
    assert "x = 1\ny = 2" == page.evaluate("navigator.clipboard.readText()")


def test_an_answer_is_copied_as_its_markdown(page, server) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    server.say("# A\n\n**b**")
    asked(page, "Hi")
    page.locator(".actions .copy").last.click()
    page.wait_for_selector('.actions .copy:has-text("Copied")')
    assert "# A\n\n**b**" == page.evaluate("navigator.clipboard.readText()")


def test_who_reads_further_up_is_not_pulled_down(page, server) -> None:
    server.script(("content", "line\n\n" * 80), ("wait",), ("content", "more\n\n" * 20))
    ask(page, "Hi")
    page.wait_for_selector(".markdown p:nth-child(80)", state="attached")
    page.locator("#log").evaluate("(log) => { log.scrollTop = 0; }")
    page.wait_for_selector("#to-end")
    server.go.set()
    done(page)
    assert 0 == page.locator("#log").evaluate("(log) => log.scrollTop")
    page.click("#to-end")
    page.wait_for_selector("#to-end", state="hidden")

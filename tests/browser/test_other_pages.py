"""The page as a whole: its key, its colours, who listens to it, and the pages beside it."""

from __future__ import annotations

import pytest
from acts import asked, texts

KEY = "a-key-of-this-test"


def test_a_server_with_a_key_asks_for_it_and_the_tab_remembers(tabs, server) -> None:
    server.key = KEY
    page = tabs.open()
    page.wait_for_selector('dialog:has-text("This server needs an API key.")')
    page.fill("dialog input[type=password]", "another-wrong-key")
    page.press("dialog input[type=password]", "Enter")
    page.wait_for_selector('dialog:has-text("The server refused it")')
    page.fill("dialog input[type=password]", KEY)
    page.press("dialog input[type=password]", "Enter")
    page.wait_for_selector("#model option", state="attached")
    asked(page, "Hi")
    assert f"Bearer {KEY}" == server.headers[0]["authorization"]
    page.reload()
    page.wait_for_selector("#model option", state="attached")
    assert not page.is_visible("dialog")
    assert None is page.evaluate("localStorage.getItem('dure-key')")
    page.click("#forget-key")
    page.wait_for_selector("dialog input[type=password]")


def test_a_key_is_kept_in_the_browser_if_one_says_so(tabs, server) -> None:
    server.key = KEY
    page = tabs.open("/status")
    page.fill("dialog input[type=password]", KEY)
    page.check("dialog input[type=checkbox]")
    page.press("dialog input[type=password]", "Enter")
    page.wait_for_selector("#models table")
    other = tabs.open("/docs")
    other.wait_for_selector(".operation")
    assert not other.is_visible("dialog")


def test_dark_and_light_are_the_systems_or_chosen(chromium, server) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    context = chromium.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto(server.url)
    dark = page.evaluate(background)
    page.select_option("#theme", "light")
    light = page.evaluate(background)
    assert ("rgb(21, 25, 23)", "rgb(255, 255, 255)") == (dark, light)
    page.reload()
    page.wait_for_selector("#model option", state="attached")
    assert light == page.evaluate(background)
    context.close()


CONTRAST = """() => {
    const parse = (text) => text.match(/[\\d.]+/g).map(Number);
    const light = (rgb) => {
        const [r, g, b] = rgb.slice(0, 3).map((value) => {
            const part = value / 255;
            return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (node) => {
        for (let at = node; at; at = at.parentElement) {
            const colour = parse(getComputedStyle(at).backgroundColor);
            if (colour.length === 3 || colour[3] > 0) return colour;
        }
        return [255, 255, 255];
    };
    const poor = [];
    for (const node of document.querySelectorAll("body *")) {
        const own = [...node.childNodes].some((each) => each.nodeType === 3 && each.data.trim());
        if (!own || !node.checkVisibility() || node.closest(":disabled, option")) continue;
        const [one, other] = [light(parse(getComputedStyle(node).color)), light(behind(node))];
        const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
        if (ratio < 4.5) poor.push(`${ratio.toFixed(2)} ${node.outerHTML.slice(0, 80)}`);
    }
    return poor;
}"""
COLOURS = (
    "# A\n\n`b` [c](https://example.org)\n\n> q\n\n```py\n# c\ndef f(X):\n    return 'x', 1\n```"
)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_can_be_told_from_its_ground(page, server, theme) -> None:
    """WCAG's 4.5 to 1, in both themes."""
    page.select_option("#theme", theme)
    server.script(("reasoning", "Hm"), ("content", COLOURS), ("call", "f", "{}"))
    asked(page, "Hi")
    assert [] == page.evaluate(CONTRAST)


def test_a_screen_reader_knows_every_control_and_hears_the_answer(page, server) -> None:
    server.script(("reasoning", "Hm"), ("content", "Heard."), ("call", "f", "{}"))
    asked(page, "Hi")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea, progress, a")]
            .filter((node) => !node.hidden && node.type !== "file")
            .filter((node) => !(node.ariaLabel || node.textContent.trim() || node.labels?.length))
            .map((node) => node.outerHTML)"""
    )
    assert [] == nameless
    assert "Heard." == page.get_by_role("status").inner_text()
    for role in ("navigation", "main", "log", "form"):
        assert 1 == page.get_by_role(role).count(), role
    assert "en" == page.get_attribute("html", "lang")
    assert 2 == page.get_by_role("article").count()


def test_what_runs_is_shown_and_renewed(tabs, server) -> None:
    page = tabs.open("/status")
    page.wait_for_selector('#streams:has-text("Nobody is being answered.")')
    assert "1,234 tokens written" in page.inner_text("#summary")
    assert "25 % of 100 MB" in page.inner_text("#models")
    assert "50 %" in page.inner_text('#models tr:has-text("replica 1")')
    assert "lost" in page.inner_text('#models tr:has-text("replica 2")')
    assert "5 of 20" in page.inner_text("#experts")
    assert "large" in page.inner_text("#all")
    server.streams = [
        {
            "id": None,
            "model": "tiny",
            "state": "reading",
            "prompt": {"done": 3, "cached": 1, "total": 9},
            "tokens": 0,
            "seconds": 3,
            "writing_seconds": 0,
        }
    ]
    page.wait_for_selector('#streams:has-text("another key\'s")')
    assert "3 of 9 (1 cached)" in page.inner_text("#streams")
    page.click("#metrics-details summary", position={"x": 5, "y": 5})
    page.wait_for_selector('#metrics:has-text("generation_tokens_total")')


def test_every_operation_of_the_api_is_described(tabs, server) -> None:
    page = tabs.open("/docs")
    page.wait_for_selector(".operation")
    described = page.locator(".operation summary code").all_inner_texts()
    paths = server.openapi["paths"]
    assert {each for each in paths if each.startswith("/v1/") or f"/v1{each}" not in paths} == set(
        described
    )
    page.fill("#filter", "thinking_budget")
    page.locator(".operation:visible summary").first.click()
    assert "thinking_budget" in page.locator(".operation:visible").first.inner_text()
    assert "curl http" in page.locator(".operation:visible pre").first.inner_text()


def test_a_server_that_is_gone_is_said(page, server) -> None:
    page.route("**/v1/chat/completions", lambda route: route.abort())
    page.fill("#input", "Hi")
    page.press("#input", "Enter")
    page.wait_for_selector('.error:has-text("The server does not answer.")')
    assert ["Hi", ""] == texts(page)

"""Writing: keys, syllables that are being composed, files, a phone."""

from __future__ import annotations

import pytest
from acts import ask, asked, done, texts

DROP = """([name, bytes]) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([new Uint8Array(bytes)], name));
    for (const kind of ["dragenter", "dragover", "drop"]) {
        document.body.dispatchEvent(
            new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
    }
}"""


def drop(page, name: str, data: bytes) -> None:
    page.evaluate(DROP, [name, list(data)])


@pytest.mark.parametrize(
    ("composing", "written"),
    [(["ㅎ", "하", "한"], "한"), (["n", "ni", "ni h", "ni hao"], "你好")],
    ids=["Korean", "Chinese"],
)
def test_enter_that_ends_a_composition_does_not_send(page, server, composing, written) -> None:
    """Chromium's own IME events: Enter while composing is the IME's, as its key code 229 says."""
    page.focus("#input")
    client = page.context.new_cdp_session(page)
    for text in composing:
        at = {"selectionStart": len(text), "selectionEnd": len(text)}
        client.send("Input.imeSetComposition", {"text": text, **at})
    key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 229}
    client.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", **key})
    client.send("Input.dispatchKeyEvent", {"type": "keyUp", **key})
    client.send("Input.insertText", {"text": written})
    assert written == page.input_value("#input")
    assert [] == server.bodies
    page.press("#input", "Enter")
    done(page)
    assert written == server.bodies[0]["messages"][0]["content"]


def test_enter_with_composing_set_does_not_send_whatever_its_code(page, server) -> None:
    """Safari ends a composition before the key, and Firefox after it."""
    page.fill("#input", "안녕")
    for options in ("{key: 'Enter', isComposing: true}", "{key: 'Enter', keyCode: 229}"):
        page.evaluate(
            f"""() => document.getElementById("input").dispatchEvent(
                new KeyboardEvent("keydown", {{bubbles: true, cancelable: true, ...{options}}}))"""
        )
    assert "안녕" == page.input_value("#input")
    assert [] == server.bodies


def test_shift_and_enter_begin_a_line(page, server) -> None:
    page.fill("#input", "one")
    page.press("#input", "Shift+Enter")
    page.keyboard.type("two")
    page.press("#input", "Enter")
    done(page)
    assert "one\ntwo" == server.bodies[0]["messages"][0]["content"]


def test_nothing_is_not_sent(page, server) -> None:
    page.fill("#input", "  \n ")
    page.press("#input", "Enter")
    page.click("#send")
    assert [] == server.bodies


def test_a_file_that_is_dropped_goes_with_the_message_as_text(page, server) -> None:
    drop(page, "notes.md", "# 두레\n```py\nx\n```\n".encode())
    page.wait_for_selector('#files li:has-text("notes.md")')
    asked(page, "What is it?")
    content = server.bodies[0]["messages"][0]["content"]
    assert "File notes.md:\n````\n# 두레\n```py\nx\n```\n\n````\n\nWhat is it?" == content
    assert 0 == page.locator("#files li").count()
    page.click(".file summary")
    assert "# 두레" in page.inner_text(".file pre")


def test_a_file_in_an_older_encoding_is_read(chromium, server) -> None:
    context = chromium.new_context(locale="ko-KR")
    page = context.new_page()
    page.goto(server.url)
    page.set_input_files(
        "#chooser", {"name": "a.txt", "mimeType": "text/plain", "buffer": "안녕".encode("euc-kr")}
    )
    page.wait_for_selector("#files li")
    asked(page, "?")
    assert "안녕" in server.bodies[0]["messages"][0]["content"]
    context.close()


def test_a_file_that_is_no_text_or_too_large_is_refused_in_a_sentence(page, server) -> None:
    drop(page, "a.png", b"\x89PNG\x00\x01")
    page.wait_for_selector('#files .error:has-text("a.png is no text.")')
    page.set_input_files(
        "#chooser", {"name": "b.txt", "mimeType": "text/plain", "buffer": b"x" * 1_000_001}
    )
    page.wait_for_selector('#files .error:has-text("the limit is 1,000.")')
    asked(page, "Hi")
    assert "Hi" == server.bodies[0]["messages"][0]["content"]


def test_a_file_can_be_taken_back(page, server) -> None:
    drop(page, "a.txt", b"x")
    page.click('[aria-label="Remove a.txt"]')
    assert 0 == page.locator("#files li").count()
    assert page.evaluate("document.activeElement.id") == "input"


def test_everything_is_reached_by_the_keyboard(page, server) -> None:
    server.say("One.", "Two.")
    asked(page, "First")
    page.press("#input", "ArrowUp")
    assert "First" == page.input_value(".editing")
    page.press(".editing", "Escape")
    page.keyboard.press("/")
    assert "input" == page.evaluate("document.activeElement.id")
    page.press("#input", "Control+Shift+O")
    page.wait_for_selector("article", state="detached")
    assert [] == texts(page)
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("?")
    assert "Escape: stop" in page.inner_text("dialog")
    page.keyboard.press("Escape")
    assert not page.is_visible("dialog")
    page.focus(".skip")
    page.keyboard.press("Enter")
    assert "input" == page.evaluate("document.activeElement.id")


def test_on_a_phone_all_fits_and_enter_begins_a_line(chromium, server) -> None:
    context = chromium.new_context(
        viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True
    )
    page = context.new_page()
    page.goto(server.url)
    page.wait_for_selector("#model option", state="attached")
    server.say("A " + "long" * 60 + "\n\n```\n" + "x" * 300 + "\n```\n\n| a | b |\n|--|--|\n|1|2|")
    page.fill("#input", "one")
    page.press("#input", "Enter")
    page.keyboard.type("two")
    page.tap("#send")
    done(page)
    assert "one\ntwo" == server.bodies[0]["messages"][0]["content"]
    widths = "[document.documentElement.scrollWidth, document.getElementById('log').scrollWidth]"
    assert [360, 360] == page.evaluate(widths)
    assert not page.is_visible("#new")
    page.tap("#menu")
    assert page.is_visible("#new")
    page.tap("#new")
    page.wait_for_selector("article", state="detached")
    assert not page.is_visible("#new")
    for name in ("#send", "#menu", "#attach", "#settings"):
        box = page.locator(name).bounding_box()
        assert min(box["width"], box["height"]) >= 34 and box["x"] + box["width"] <= 360
    context.close()


def test_a_message_is_not_sent_while_an_answer_comes(page, server) -> None:
    server.script(("content", "So far"), ("wait",), ("content", "."))
    ask(page, "One")
    page.wait_for_selector('.markdown:has-text("So far")')
    page.fill("#input", "Two")
    page.press("#input", "Enter")
    assert "Two" == page.input_value("#input")
    server.go.set()
    done(page)
    assert 1 == len(server.bodies)

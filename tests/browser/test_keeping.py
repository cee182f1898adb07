"""What was said stays in this browser, and moves by files alone."""

from __future__ import annotations

import json

from acts import ask, asked, done, shown, texts
from scripted import until


def titles(page) -> list[str]:
    return page.locator("#conversations .open").all_inner_texts()


def test_a_conversation_is_there_again_after_a_reload(page, server) -> None:
    server.script(("reasoning", "Hmm."), ("content", "Kept."))
    asked(page, "Keep this")
    before = shown(page)
    page.reload()
    page.wait_for_selector("article.assistant")
    assert before == shown(page)
    assert not page.is_visible("#forgetful")


def test_several_conversations_are_kept_apart(page, server) -> None:
    server.say("One.", "Two.")
    asked(page, "First talk")
    page.click("#new")
    page.wait_for_selector("article", state="detached")
    asked(page, "Second talk")
    assert 1 == len(server.bodies[1]["messages"])
    assert ["Second talk", "First talk"] == titles(page)
    page.click('.open:has-text("First talk")')
    page.wait_for_selector('.markdown:has-text("One.")')
    assert ["First talk", "One."] == texts(page)
    page.go_back()
    page.wait_for_selector('.markdown:has-text("Two.")')


def test_an_answer_goes_on_while_another_conversation_is_shown(page, server) -> None:
    server.script(("content", "Slowly"), ("wait",), ("content", " done."))
    ask(page, "Slow")
    page.wait_for_selector('.markdown:has-text("Slowly")')
    page.click("#new")
    server.say("Quick.")
    assert "Quick." == asked(page, "Quick?")
    server.go.set()
    page.click('.open:has-text("Slow")')
    done(page)
    assert ["Slow", "Slowly done."] == texts(page)


def test_a_conversation_is_found_renamed_and_deleted(page, server) -> None:
    asked(page, "Apples")
    page.click("#new")
    asked(page, "Pears")
    page.fill("#filter", "app")
    assert ["Apples"] == titles(page)
    page.fill("#filter", "")
    page.click('[aria-label="Rename Apples"]')
    page.fill("dialog input", "Fruit")
    page.press("dialog input", "Enter")
    page.wait_for_selector('.open:text-is("Fruit")')
    page.click('[aria-label="Delete Pears"]')
    page.click('dialog button:text-is("Delete")')
    page.wait_for_selector('.open:text-is("Pears")', state="detached")
    page.reload()
    page.wait_for_selector('.open:text-is("Fruit")')
    assert ["Fruit"] == titles(page)


def test_a_conversation_that_is_deleted_while_it_is_answered_stays_deleted(page, server) -> None:
    server.script(("content", "So far"), ("wait",), ("content", " done."))
    ask(page, "Apples")
    page.wait_for_selector('.markdown:has-text("So far")')
    page.click('[aria-label="Delete Apples"]')
    page.click('dialog button:text-is("Delete")')
    page.wait_for_selector("article", state="detached")
    server.go.set()
    until(lambda: server.left)
    assert "Pears." == (server.say("Pears."), asked(page, "Pears"))[1]
    page.reload()
    page.wait_for_selector('.open:text-is("Pears")')
    assert ["Pears"] == titles(page)


def test_a_conversation_that_another_tab_deletes_stays_deleted(page, server) -> None:
    asked(page, "Apples")
    other = page.context.new_page()
    other.goto(page.url)
    other.wait_for_selector("article.assistant")
    page.click('[aria-label="Delete Apples"]')
    page.click('dialog button:text-is("Delete")')
    other.wait_for_selector("article", state="detached")
    other.click("#new")
    other.reload()
    other.wait_for_selector("#empty")
    assert [] == titles(other)


def test_an_export_brings_everything_back_in_another_browser(page, server, chromium) -> None:
    server.script(("reasoning", "Hmm."), ("content", "Kept `here`."))
    asked(page, "Move me")
    with page.expect_download() as download:
        page.click("#export")
    path = download.value.path()
    assert "dure-chat" == json.loads(path.read_text("utf-8"))["format"]
    before = shown(page)
    other = chromium.new_context().new_page()
    other.goto(server.url)
    other.set_input_files("#import-chooser", path)
    other.wait_for_selector("article.assistant")
    assert before == shown(other)
    other.context.close()


def test_a_conversation_is_saved_as_markdown(page, server) -> None:
    server.say("The **answer**.")
    asked(page, "The question")
    with page.expect_download() as download:
        page.click("#save-one")
    text = download.value.path().read_text("utf-8")
    assert "# The question\n\n## You\n\nThe question\n\n## tiny\n\nThe **answer**.\n" == text


def test_what_is_no_export_is_refused_in_a_sentence(page, tmp_path) -> None:
    damaged = {"format": "dure-chat", "version": 1, "conversations": [{"nodes": {"a": {"id": 3}}}]}
    for text, words in (
        ("no json", "not JSON"),
        ('{"format": "other"}', "no export"),
        ('{"format": "dure-chat", "version": 9, "conversations": []}', "version 9"),
        (json.dumps(damaged), "damaged"),
    ):
        path = tmp_path / "given.json"
        path.write_text(text)
        page.set_input_files("#import-chooser", path)
        assert words in page.inner_text("dialog p")
        page.click('dialog button:text-is("OK")')
    assert [] == titles(page)


def test_an_import_takes_nothing_that_it_does_not_know(page, tmp_path) -> None:
    node = {
        "id": "aa",
        "parent": "aa",
        "role": "assistant",
        "content": "<b onclick='x'>bold</b>",
        "figures": {"output": 3, "energy": "<i>", "other": {"deep": 1}},
        "onclick": "x",
        "calls": "none",
    }
    user = {"id": "bb", "parent": "cc", "role": "user", "content": "Hi", "__proto__": {"x": 1}}
    given = {"id": "../", "title": 3, "nodes": {"1": node, "2": user}, "leaf": "aa", "settings": 4}
    path = tmp_path / "given.json"
    whole = {"format": "dure-chat", "version": 1, "conversations": [given]}
    path.write_text(json.dumps(whole))
    page.set_input_files("#import-chooser", path)
    page.wait_for_selector("article.assistant")
    assert ["<b onclick='x'>bold</b>"] == texts(page)


def test_two_tabs_on_one_conversation_lose_nothing(page, server, tabs) -> None:
    server.say("One.", "Two.", "Three.")
    asked(page, "First")
    other = tabs.open("/" + page.evaluate("location.hash"))
    other.wait_for_selector("article.assistant")
    asked(other, "From the other", 2)
    done(page, 2)
    assert texts(other) == texts(page)
    asked(page, "From the one", 3)
    done(other, 3)
    assert ["First", "One.", "From the other", "Two.", "From the one", "Three."] == texts(other)


def test_a_tab_that_is_closed_in_midstream_keeps_what_came(page, server, tabs) -> None:
    server.script(("content", "So far."), ("wait",))
    ask(page, "Hi")
    page.wait_for_selector('.markdown:has-text("So far.")')
    address = "/" + page.evaluate("location.hash")
    page.wait_for_timeout(2300)  # it is written down every two seconds
    page.close()
    again = tabs.open(address)
    again.wait_for_selector("article.assistant")
    assert ["Hi", "So far."] == texts(again)

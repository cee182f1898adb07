"""A conversation: streamed, stopped, changed, branched; thoughts, tools, and what it took."""

from __future__ import annotations

import json

from acts import act, ask, asked, done, texts
from scripted import until


def test_what_is_asked_is_answered_and_the_box_is_empty_again(page, server) -> None:
    server.say("Hello **you**.")
    assert "Hello you." == asked(page, "Hi")
    assert "" == page.input_value("#input")
    assert [{"role": "user", "content": "Hi"}] == server.bodies[0]["messages"]
    assert "tiny" == server.bodies[0]["model"] and server.bodies[0]["stream"]


def test_an_answer_is_shown_while_it_comes(page, server) -> None:
    server.script(("content", "First part "), ("wait",), ("content", "and the rest."))
    ask(page, "Hi")
    page.wait_for_selector('.markdown:has-text("First part")')
    assert "true" == page.get_attribute("article.assistant", "aria-busy")
    server.go.set()
    done(page)
    assert ["Hi", "First part and the rest."] == texts(page)


def test_the_next_message_takes_all_that_was_said_before(page, server) -> None:
    server.say("One.", "Two.")
    asked(page, "First")
    asked(page, "Second", 2)
    said = [(each["role"], each["content"]) for each in server.bodies[1]["messages"]]
    assert [("user", "First"), ("assistant", "One."), ("user", "Second")] == said


def test_stop_ends_the_stream_and_keeps_what_came(page, server) -> None:
    server.script(("content", "So far"), ("wait",), ("content", "not this"))
    ask(page, "Hi")
    page.wait_for_selector('.markdown:has-text("So far")')
    page.click("#stop")
    done(page)
    assert ["Hi", "So far"] == texts(page)
    assert "Stopped." == page.inner_text("article.assistant .state")
    server.go.set()
    until(lambda: server.left)


def test_escape_stops_too(page, server) -> None:
    server.script(("content", "So far"), ("wait",))
    ask(page, "Hi")
    page.wait_for_selector('.markdown:has-text("So far")')
    page.press("#input", "Escape")
    done(page)


def test_an_edit_begins_a_branch_and_the_old_one_stays(page, server) -> None:
    server.say("To the first.", "To the second.")
    asked(page, "First")
    act(page, "Edit")
    page.fill(".editing", "Second")
    page.press(".editing", "Control+Enter")
    done(page)
    assert ["Second", "To the second."] == texts(page)
    assert 1 == len(server.bodies[1]["messages"])
    page.click('[aria-label="The version before"]')
    assert ["First", "To the first."] == texts(page)
    assert "1 / 2" == page.inner_text(".place")
    page.click('[aria-label="The next version"]')
    assert ["Second", "To the second."] == texts(page)


def test_regenerate_is_another_answer_beside_the_first(page, server) -> None:
    server.say("One.", "Another.")
    asked(page, "Hi")
    act(page, "Regenerate")
    done(page)
    assert ["Hi", "Another."] == texts(page)
    assert server.bodies[0]["messages"] == server.bodies[1]["messages"]
    page.click('[aria-label="The version before"]')
    assert ["Hi", "One."] == texts(page)


def test_a_branch_is_shown_down_to_where_it_was_talked_on(page, server) -> None:
    server.say("A1", "A2", "B1")
    asked(page, "a")
    asked(page, "b", 2)
    page.locator('.actions button:text-is("Edit")').first.click()
    page.fill(".editing", "c")
    page.click('.edit button:text-is("Send")')
    done(page)
    page.click('[aria-label="The version before"]')
    assert ["a", "A1", "b", "A2"] == texts(page)


def test_a_cut_answer_goes_on_where_it_ended(page, server) -> None:
    server.script(("content", "Begun and"), ("end", "length"))
    server.say(" ended.")
    asked(page, "Hi")
    act(page, "Continue")
    done(page)
    assert ["Hi", "Begun and ended."] == texts(page)
    assert {"role": "assistant", "content": "Begun and"} == server.bodies[1]["messages"][-1]


def test_what_goes_on_and_ends_before_a_frame_is_drawn_is_one_text(page, server) -> None:
    server.script(("content", "Begun and"), ("end", "length"))
    server.say(" ended.")
    asked(page, "Hi")
    page.evaluate("window.requestAnimationFrame = () => 0")  # as in a tab that is not shown
    act(page, "Continue")
    until(lambda: 2 == len(server.bodies))
    done(page)
    assert ["Hi", "Begun and ended."] == texts(page)


def test_thoughts_are_folded_and_can_be_opened(page, server) -> None:
    server.script(("reasoning", "Let me see."), ("content", "Seen."))
    asked(page, "Hi")
    assert not page.is_visible(".thoughts")
    page.click(".thinking summary")
    assert "Let me see." == page.inner_text(".thoughts")
    assert page.inner_text(".thinking summary").startswith("Thought for")
    assert ["Hi", "Seen."] == texts(page)


def test_answer_now_ends_the_thoughts_of_this_answer(page, server) -> None:
    server.script(("reasoning", "Hmm"), ("wait",), ("content", "Now."))
    ask(page, "Hi")
    page.click(".answer-now")
    done(page)
    assert [{"id": "chatcmpl-1", "action": "reasoning_end"}] == server.controls
    assert not page.is_visible(".answer-now")


def test_the_slider_caps_the_thoughts(page, server) -> None:
    slider = page.locator("#budget")
    assert "no limit" == slider.get_attribute("aria-valuetext")
    slider.focus()
    slider.press("ArrowLeft")
    assert "32,768 tokens" == slider.get_attribute("aria-valuetext")
    asked(page, "Hi")
    slider.press("Home")
    asked(page, "Again", 2)
    slider.press("End")
    asked(page, "More", 3)
    assert [32768, 0, None] == [body.get("thinking_budget") for body in server.bodies]


def test_calls_of_tools_are_shown_and_their_results_sent_back(page, server) -> None:
    tools = json.dumps([{"name": "weather", "parameters": {"type": "object"}}])
    page.click("#settings")
    page.fill("dialog .code-input", tools)
    page.click('dialog button:text-is("Save")')
    server.script(("call", "weather", '{"city": "Seoul"}'))
    server.say("It is warm.")
    ask(page, "How is it in Seoul?")
    page.wait_for_selector('.call textarea[aria-label="Result of weather"]')
    assert '"city": "Seoul"' in page.inner_text(".call pre")
    page.fill(".call textarea", "28 degrees")
    page.click('button:text-is("Send results")')
    done(page, 2)
    assert "weather" == server.bodies[0]["tools"][0]["function"]["name"]
    call, result = server.bodies[1]["messages"][-2:]
    assert '{"city": "Seoul"}' == call["tool_calls"][0]["function"]["arguments"]
    assert {"role": "tool", "tool_call_id": "call_0", "content": "28 degrees"} == result


def test_how_much_of_the_prompt_is_read_is_shown(page, server) -> None:
    server.script(("progress", 1500, 1000, 4000), ("wait",), ("content", "Read."))
    ask(page, "Hi")
    page.wait_for_selector('.state:has-text("Reading 1,500 of 4,000 tokens (1,000 cached)")')
    assert "about 10 s more" in page.inner_text("article .state")
    assert 0.375 == page.locator("article .state progress").evaluate("(bar) => bar.value")
    server.go.set()
    done(page)


def test_what_an_answer_took_is_shown(page, server) -> None:
    asked(page, "Hi")
    line = page.inner_text("article.assistant .figures")
    for words in ("12 tokens at 45.6/s", "prompt 30 (20 cached) at 400/s", "12.3 J (rapl)"):
        assert words in line
    assert "0.000120 EUR" in line
    assert "42 of 8,192 tokens" == page.inner_text("#context")


def test_sampling_and_the_system_prompt_go_with_every_message(page, server) -> None:
    page.click("#settings")
    page.fill("#system-prompt", "Be brief.")
    page.get_by_label("Temperature").fill("0.3")
    page.get_by_label("Seed").fill("7")
    page.get_by_label("Reasoning effort").select_option("low")
    page.click('dialog button:text-is("Save")')
    asked(page, "Hi")
    body = server.bodies[0]
    assert {"role": "system", "content": "Be brief."} == body["messages"][0]
    assert (0.3, 7, "low") == (body["temperature"], body["seed"], body["reasoning_effort"])
    assert "top_p" not in body and "max_tokens" not in body


def test_settings_out_of_their_bounds_are_not_taken(page, server) -> None:
    page.click("#settings")
    page.get_by_label("Temperature").fill("9")
    page.click('dialog button:text-is("Save")')
    assert page.is_visible("dialog")
    page.get_by_label("Temperature").fill("")
    page.fill("dialog .code-input", "[{")
    page.click('dialog button:text-is("Save")')
    assert page.is_visible("dialog")
    page.press("dialog", "Escape")
    assert not page.is_visible("dialog")


def test_an_error_is_said_in_the_servers_words_and_can_be_tried_again(page, server) -> None:
    server.refusals.append((429, "544 answers run or wait, and the limit is 544."))
    ask(page, "Hi")
    page.wait_for_selector('.error:has-text("the limit is 544")')
    server.say("Now it goes.")
    act(page, "Try again")
    done(page)
    assert ["Hi", "Now it goes."] == texts(page)


def test_an_error_in_midstream_keeps_what_came(page, server) -> None:
    server.script(("content", "So far"), ("fail", "The disk failed."))
    ask(page, "Hi")
    page.wait_for_selector('.error:has-text("The disk failed.")')
    assert ["Hi", "So far"] == texts(page)


def test_another_model_is_chosen_loaded_and_asked(page, server) -> None:
    page.select_option("#model", "large")
    page.click("#load")
    page.wait_for_selector('#load-line:has-text("Loading large: 4.5 GB of 9.1 GB")')
    assert 0.5 == page.locator("#load-bar").evaluate("(bar) => bar.value")
    server.go.set()
    page.wait_for_selector("#loading", state="hidden")
    page.wait_for_selector(
        '#model option:text-is("large · Q8_0 · 9.1 GB · loaded")', state="attached"
    )
    asked(page, "Hi")
    assert "large" == server.bodies[0]["model"]
    assert "large" == page.inner_text("article.assistant .who")


def test_a_model_that_is_loaded_for_a_message_is_shown_on_its_way(page, server) -> None:
    server.loading = {
        "id": "large",
        "stage": "downloading",
        "done_bytes": 1,
        "total_bytes": 4,
        "seconds": 1,
    }
    server.script(("wait",), ("content", "Here."))
    ask(page, "Hi")
    page.wait_for_selector('article .state:has-text("Downloading large: 25 %")')
    server.loading = None
    server.go.set()
    done(page)

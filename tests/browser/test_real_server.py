"""The pages and dure's own server: what one sends is what the other takes."""

from __future__ import annotations

import pytest
from acts import ask, asked, done, texts
from fake_model import ScriptModel, reply
from stepped import ROOMY, Stepped, endless

KEY = "a-key-of-this-test"
THINKS = "<think>\nThey greet me.\n</think>\n\nHello **there**."
TEMPLATE = """{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}"""


@pytest.fixture
def open_page(chromium):
    """A function that opens a path of a server in a new profile."""
    contexts = []

    def opened(server, path="/"):
        context = chromium.new_context()
        contexts.append(context)
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{server.port}{path}")
        return page

    yield opened
    for context in contexts:
        context.close()


def test_a_question_is_answered_with_thoughts_and_figures(serve, open_page) -> None:
    model = ScriptModel(reply(THINKS), context_length=4096)
    server = serve(model, keys=(KEY,), model_options={**ROOMY, "template": TEMPLATE})
    page = open_page(server)
    page.fill("dialog input[type=password]", KEY)
    page.press("dialog input[type=password]", "Enter")
    page.wait_for_selector("#model option", state="attached")
    page.click("#settings")
    page.fill("#system-prompt", "Be kind.")
    page.get_by_label("Temperature").fill("0")
    page.click('dialog button:text-is("Save")')
    assert "Hello there." == asked(page, "Hi")
    assert "They greet me." == page.locator(".thoughts").text_content().strip()
    assert "tokens at" in page.inner_text("article.assistant .figures")
    asked(page, "Again", 2)
    assert "cached" in page.locator("article.assistant .figures").last.inner_text()


def test_stop_ends_the_work_of_the_server(serve, open_page) -> None:
    model = Stepped(endless)
    server = serve(model, model_options=ROOMY)
    page = open_page(server)
    page.wait_for_selector("#model option", state="attached")
    ask(page, "Hi")
    model.let(20)
    page.wait_for_selector('.markdown:has-text("yyy")')
    status = open_page(server, "/status")
    status.wait_for_selector('#streams:has-text("writing")')
    page.click("#stop")
    model.let()
    done(page)
    server.wait_until(server.is_idle)
    assert set("y") == set(texts(page)[1])
    status.wait_for_selector('#streams:has-text("Nobody is being answered.")')


def test_the_api_is_described_by_the_server_itself(serve, open_page) -> None:
    page = open_page(serve(reply("ok")), "/docs")
    page.wait_for_selector('.operation:has-text("/v1/chat/completions/control")')
    assert page.locator(".operation").count() > 20

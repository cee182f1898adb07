"""What a person does at the chat, in a test's words."""

from __future__ import annotations

from typing import Any


def ask(page: Any, text: str) -> None:
    """Write a message and send it."""
    page.fill("#input", text)
    page.press("#input", "Enter")


def done(page: Any, answers: int = 1) -> None:
    """Wait until so many answers are shown, all of them over."""
    over = page.locator('article.assistant[aria-busy="false"]')
    over.nth(answers - 1).wait_for(state="attached")
    page.wait_for_selector('article.assistant[aria-busy="true"]', state="detached")
    page.wait_for_selector("#stop[hidden]", state="attached")
    assert answers == over.count()


def asked(page: Any, text: str, answers: int = 1) -> str:
    """Send a message, and return the newest answer's text once it is over."""
    ask(page, text)
    done(page, answers)
    return str(page.locator("article.assistant .markdown").last.inner_text())


def texts(page: Any) -> list[str]:
    """What was said on the branch that is shown, from both."""
    said = page.locator(".plain-text, .markdown").all_text_contents()  # also where none looks
    return [each.strip() for each in said]


def shown(page: Any) -> list[str]:
    """The HTML of all that the messages say, and of what the answers took."""
    parts = page.locator(".plain-text, .markdown, .thoughts, .thinking summary, .answer .figures")
    return list(parts.evaluate_all("(all) => all.map((each) => each.innerHTML)"))


def act(page: Any, name: str, at: int = -1) -> None:
    """Press the button of that name below a message."""
    page.locator(f'.actions button:text-is("{name}")').nth(at).click()


def markdown(page: Any, text: str, pieces: int = 0) -> str:
    """The HTML that the page's own renderer makes of a text, whole or in pieces of that size."""
    return str(
        page.evaluate(
            """async ([text, size]) => {
                const source = document.querySelector('script[type="module"]').src;
                const { Markdown } = await import(source.replace("chat.js", "markdown.js"));
                const root = document.createElement("div");
                const markdown = new Markdown(root);
                const step = size || text.length || 1;
                for (let at = 0; at < text.length; at += step) {
                    markdown.append(text.slice(at, at + step));
                }
                markdown.end();
                root.normalize();
                return root.innerHTML;
            }""",
            [text, pieces],
        )
    )

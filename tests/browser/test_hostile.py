"""Whatever a model writes is text: no script runs, nothing is asked elsewhere, nothing hangs."""

from __future__ import annotations

import pytest
from acts import asked, done, texts
from hostile import ANSWERS

DANGERS = """() => {
    const log = document.getElementById("log");
    const media = "iframe,img,object,embed,video,audio,svg,math";
    const tags = `script,link,style,meta,base,form,input,${media}`;
    const found = [...log.querySelectorAll(tags)].map((node) => node.outerHTML.slice(0, 80));
    for (const node of log.querySelectorAll("*")) {
        for (const { name, value } of node.attributes) {
            const bad = ["style", "src", "srcset", "ping"];
            const isBad = name.startsWith("on") || bad.includes(name);
            const isLink = name === "href" && !/^(https?:|mailto:)/.test(value);
            if (isBad || isLink) found.push(name + value.slice(0, 80));
        }
        if (node.tagName === "A" && !node.rel.includes("noopener")) found.push("no rel");
    }
    return [found, window.owned ?? null, document.getElementById("input").tagName];
}"""
PARTS = 5


def test_there_are_a_hundred_hostile_answers_or_more() -> None:
    assert len(set(ANSWERS)) >= 100


@pytest.mark.parametrize("part", range(PARTS))
def test_no_hostile_answer_is_more_than_text(page, server, part) -> None:
    """As text, as a thought, in a call and in a file; the fixture sees requests and errors."""
    for answer in ANSWERS[part::PARTS]:
        short = answer[:3000]
        server.script(("reasoning", short), ("content", answer), ("call", short[:100], short))
        page.press("#input", "Control+Shift+O")
        page.wait_for_selector("article", state="detached")
        asked(page, "Say: " + short[:500].replace("\n", " "))
        page.locator(".thinking summary").evaluate("(node) => node.click()")
        found, owned, tag = page.evaluate(DANGERS)
        assert ([], None, "TEXTAREA") == (found, owned, tag), repr(answer[:100])
    assert len(server.bodies) == len(ANSWERS[part::PARTS])


def test_the_browser_itself_refuses_to_make_html_of_text(chromium, server) -> None:
    """Trusted Types: were there such a line in our scripts, it would fail."""
    context = chromium.new_context()
    page = context.new_page()
    page.goto(server.url)
    with pytest.raises(Exception, match="TrustedHTML"):
        page.evaluate("""document.getElementById("log").innerHTML = "<b>x</b>" """)
    context.close()


def test_a_conversation_of_200_turns_is_kept_shown_and_gone_on_with(page, server) -> None:
    nodes, parent = {}, None
    for turn in range(400):
        name = f"{turn:04x}"
        role = "assistant" if turn % 2 else "user"
        content = f"Turn **{turn}**\n\n```py\nx = {turn}\n```\n\n" + "Some words of it. " * 30
        node = {"id": name, "parent": parent, "role": role, "content": content, "created": turn}
        nodes[name] = node
        parent = name
    whole = {"id": "abc", "title": "Long", "nodes": nodes, "leaf": parent, "settings": {}}
    page.evaluate(
        """(whole) => new Promise((resolve, reject) => {
            const opening = indexedDB.open("dure", 1);
            opening.onsuccess = () => {
                const stores = opening.result.transaction(["whole", "heads"], "readwrite");
                stores.objectStore("whole").put(whole);
                stores.objectStore("heads").put({ id: whole.id, title: whole.title, updated: 1 });
                stores.oncomplete = resolve;
                stores.onerror = reject;
            };
        })""",
        {**whole, "created": 1, "updated": 1},
    )
    page.goto(f"{server.url}/#abc")
    page.reload()
    done(page, 200)
    server.say("The last one.")
    asked(page, "One more", 201)
    assert 401 == len(server.bodies[0]["messages"])
    assert "The last one." == texts(page)[-1]
    page.locator('.actions button:text-is("Edit")').first.click()
    page.fill(".editing", "Anew")
    page.press(".editing", "Control+Enter")
    done(page)
    page.click('[aria-label="The version before"]')
    done(page, 201)

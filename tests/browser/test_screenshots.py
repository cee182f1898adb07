"""The pictures of the guide, made where $DURE_SCREENSHOTS names a folder."""

from __future__ import annotations

import os
from pathlib import Path

from acts import asked

ANSWER = """A *mixture of experts* has many small networks in a layer, and a **router** picks a few:

| model | experts | of a token |
|---|--:|--:|
| Qwen3-30B-A3B | 128 | 8 |
| gpt-oss-20b | 32 | 4 |

```python
def route(x, router, k=8):
    scores = softmax(x @ router.T)  # one for each expert
    return top_k(scores, k)
```

So a token costs what its few experts cost, though the model knows what all of them do.
"""


def test_the_guides_pictures_are_made(page, server, tabs, tmp_path) -> None:
    folder = Path(os.environ.get("DURE_SCREENSHOTS", tmp_path))
    server.script(("reasoning", "Short, with a table."), ("content", ANSWER))
    asked(page, "What is a mixture of experts, in a few lines?")
    page.screenshot(path=folder / "page-chat.png")
    page.select_option("#theme", "dark")
    page.set_viewport_size({"width": 390, "height": 760})
    page.screenshot(path=folder / "page-phone.png")
    other = tabs.open("/status")
    other.select_option("#theme", "light")
    other.wait_for_selector("#all table")
    other.screenshot(path=folder / "page-status.png")
    for name in ("chat", "phone", "status"):
        assert 5_000 < (folder / f"page-{name}.png").stat().st_size < 150_000

"""The work that speculation.py measures: prompts, sampling, and how long the answers are.

Everything is the same in every run: the texts stand here and in speculation_file.txt, and what is
drawn is drawn with a seed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("speculation_file.txt").read_text(encoding="utf-8")
EDIT = (
    "In this file, replace the line `owed_cents: int = 0` by `owed_cents: int = 250`. Print the "
    "whole file again with that change, and nothing else.\n\n```python\n{}```"
)
CODE = (
    "Write a Python class `IntervalSet` for half-open intervals of integers. It has the methods "
    "`add(start, stop)`, `remove(start, stop)`, `__contains__(number)`, `__iter__` over merged "
    "intervals in order, `total()` for the numbers covered, and `gaps(start, stop)`. Intervals "
    "that touch are merged. Keep a sorted list and use bisect. Give every method a docstring and "
    "type annotations, then write six unit tests with pytest. Code only."
)
CITIES = (
    "Oslo, Seoul, Lima, Cairo, Quito, Hanoi, Accra, Riga, Perth, Izmir, Porto, Kyoto, Turin, "
    "Dakar, Omaha, Basel, Davao, Leeds, Sofia, Tunis"
)
RECORDS = len(CITIES.split(", "))
JSON = (
    "For each of these cities, in this order, give country, continent, a landmark, whether it is "
    "a capital, its population, and the year in which it was founded, by your best knowledge: "
    f"{CITIES}."
)
RECORD = {
    "city": {"type": "string"},
    "country": {"type": "string"},
    "continent": {"type": "string"},
    "landmark": {"type": "string"},
    "is_capital": {"type": "boolean"},
    "population": {"type": "integer"},
    "founded": {"type": "integer"},
}
SCHEMA = {
    "type": "object",
    "properties": {
        "records": {
            "type": "array",
            "minItems": RECORDS,
            "maxItems": RECORDS,
            "items": {
                "type": "object",
                "properties": RECORD,
                "required": list(RECORD),
                "additionalProperties": False,
            },
        }
    },
    "required": ["records"],
    "additionalProperties": False,
}
STORY = "Tell the story of {}. Begin at once, in long sentences, without a title."
SUBJECTS = (
    "a lighthouse keeper who collects clocks",
    "two sisters who inherit a ferry",
    "a bridge that nobody remembers building",
    "a cook on a ship in the ice",
    "the last tram of the night",
    "a teacher who moves into the mountains",
    "a violin that comes back after forty years",
    "a village that votes on its name",
    "a mapmaker who cannot travel",
    "a drought and the old well",
    "the gardener of an empty palace",
    "a letter that arrives for a stranger",
    "a translator at a long trial",
    "the first winter of a young baker",
    "a diver who finds a bell",
    "a railway clerk and a lost child",
)
HOSTILE_SYMBOLS = 8  # every five of them have stood in 30,000 tokens before, going on otherwise
MOTIF = 24  # tokens that repeat before each break of the pattern
TAIL = 16  # tokens that differ from round to round, behind a prompt that stays in the cache
WORDS = (
    "river stone window garden letter morning bridge copper silent market winter harbour paper "
    "journey mountain thunder village meadow orange silver pocket doctor engine forest island "
    "kitchen ladder mirror needle office pencil queen rocket school table uncle valley wagon"
)


@dataclass(frozen=True)
class Work:
    """One piece of work: chats that are answered at once, or a prompt of drawn tokens."""

    name: str
    tokens: int  # of each answer, at most
    chats: tuple[str, ...] = ()  # what the user says in each
    drawn: str = ""  # "symbols", "motifs" or "cycle": the prompt is made by `drawn_prompt`
    schema: dict[str, Any] | None = None  # of the JSON answer
    prediction: str = ""  # text that the request brings
    drafted_by_model: bool = False  # the second side drafts with a smaller model, if it has one
    sampling: dict[str, Any] = field(default_factory=lambda: {"temperature": 0.0})

    def seed(self, turn: int, number: int) -> int:
        """Of answer `number` in a round: the same on all sides."""
        return 1000 * turn + number


SAMPLED = {"temperature": 0.8, "ignore_eos": True}
GREEDY = {"temperature": 0.0, "ignore_eos": True}
EVENLY = {"temperature": 100.0, "ignore_eos": True}  # the symbols, all about as likely as another
EDIT_CHAT = (EDIT.format(FILE),)
WORK = {
    work.name: work
    for work in (
        Work("edit", 400, EDIT_CHAT),
        Work("prediction", 400, EDIT_CHAT, prediction=f"```python\n{FILE}```"),
        Work("json", 1400, (JSON,), schema=SCHEMA),
        Work("code", 400, (CODE,), drafted_by_model=True),
        Work("prose", 160, (STORY.format(SUBJECTS[0]),), sampling=SAMPLED),
        Work("streams", 64, tuple(map(STORY.format, SUBJECTS)), sampling=SAMPLED),
        Work("hostile", 128, drawn="symbols", sampling=EVENLY),
        Work("motifs", 128, drawn="motifs", sampling=GREEDY),
        Work("cycle", 400, drawn="cycle", sampling=GREEDY),
    )
}
EVERY = tuple(name for name in WORK if name != "cycle")
"""What is measured by default; "cycle" is for the models of make_mtp.py."""

PEER_WORK = ("edit", "prediction", "json", "code", "prose")
"""What llama-server does, too; it knows no `prediction`, so that it does "edit" once more there."""


def drawn_prompt(kind: str, symbols: Sequence[int], size: int, turn: int) -> list[int]:
    """A prompt of `size` tokens; two kinds repeat themselves and break the pattern each time.

    "symbols": drawn from eight tokens, as the answer will be: whatever the last tokens are, they
    have stood there before, and what followed then is right once in eight times. "motifs": one row
    of tokens again and again, each time with another token behind it. "cycle": a few tokens, of
    which the last one says how a model of make_mtp.py goes on.
    """
    draw = random.Random(7)
    last = random.Random(100 + turn)
    if kind == "cycle":
        return [last.choice(symbols) for _ in range(TAIL)]
    if kind == "symbols":
        few = symbols[:HOSTILE_SYMBOLS]
        ids = [draw.choice(few) for _ in range(size - TAIL)]
        return ids + [last.choice(few) for _ in range(TAIL)]
    motif = [draw.choice(symbols) for _ in range(MOTIF)]
    ids = []
    while len(ids) + MOTIF + 1 < size:
        ids += [*motif, draw.choice(symbols)]
    return [*ids, last.choice(symbols), *motif[: size - len(ids) - 1]]

"""dure embed: print the embeddings of texts."""

# ruff: noqa: PLC0415 - the kernels are loaded when the verb runs, not for its --help

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dure.cli import console
from dure.cli.ctrl_c import ends_soon

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

AT_ONCE = 256
"""Texts whose embeddings are computed before the first is printed, at most."""

AROUND = 16
"""Tokens that a model may put around a text."""


def command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A short name, a hub id, a file or a folder.")
    ],
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT",
            show_default=False,
            help="The texts. Without any, and without --file, each line of standard input is one.",
        ),
    ] = None,
    *,
    file: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A UTF-8 file that is one text; may be repeated."),
    ] = None,
    prompt_name: Annotated[
        str | None,
        typer.Option(help="Write the model's prompt of this name before each text, such as query."),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Write this before each text, such as an instruction.")
    ] = None,
    dimensions: Annotated[
        int | None, typer.Option(min=1, help="Numbers of each vector [default: all].")
    ] = None,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut a text that is too long.")
    ] = False,
    context: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of a text at most [default: what fits, up to 32768]."),
    ] = None,
    memory: console.Memory = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads [default: the physical cores].")
    ] = None,
    quantize: console.Quantize = None,
    exact: console.Exact = False,
) -> None:
    """Print the embeddings of texts, one JSON object a line: index, tokens, embedding.

    How hidden states become a vector is as the model's files say; where they say nothing, it is the
    last token's, with the length 1.
    """
    from dure.cli.run import load

    budget = console.memory_budget(memory)
    given = [*(texts or []), *(console.read_text(path) for path in file or [])]
    llm = load(
        model,
        context=context,
        threads=threads,
        exact=exact,
        quantize=quantize,
        memory=budget,
        speculate="off",
    )
    console.tell_memory(llm.name, llm.memory)
    if not llm.pooling.is_said:
        console.note(f"({llm.name} does not say how it is pooled: the last token is taken)")
    index = 0
    named = None if prompt_name is None else llm.pooling.prompts.get(prompt_name)
    with ends_soon():
        for batch in _batches(given or None, prompt or named or ""):
            for made in llm.embed(
                batch,
                prompt=prompt,
                prompt_name=prompt_name,
                dimensions=dimensions,
                truncate=truncate,
            ):
                line = {"index": index, "tokens": made.prompt_tokens}
                console.write(f"{json_module.dumps({**line, 'embedding': made.vector.tolist()})}\n")
                index += 1


def _batches(given: Sequence[str] | None, prompt: str) -> Iterator[list[str]]:
    """Yield the texts, or the lines of standard input that are not empty, some at a time.

    Together with the prompt before each they have no more tokens than one request may have: none
    has more than its text has bytes.
    """
    from dure.pooling.request import MAX_TOKENS

    batch: list[str] = []
    before = AROUND + len(prompt.encode(errors="replace"))
    total = 0
    for text in _lines() if given is None else given:
        size = before + len(text.encode(errors="replace"))
        if batch and (len(batch) == AT_ONCE or total + size > MAX_TOKENS):
            yield batch
            batch, total = [], 0
        batch.append(text)
        total += size
    if batch:
        yield batch


def _lines() -> Iterator[str]:
    from dure.errors import InvalidRequestError

    if sys.stdin is None or sys.stdin.isatty():
        raise InvalidRequestError(
            "No TEXT was given, and standard input is a terminal.",
            hint='dure embed MODEL "…", or pipe texts in, one a line',
        )
    empty = 0
    for number, raw in enumerate(sys.stdin.buffer, 1):
        try:
            text = raw.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise InvalidRequestError(
                f"Line {number} of standard input is not UTF-8 text.",
                hint="convert it with iconv first",
            ) from None
        if text:
            yield text
        else:
            empty += 1
    if empty:
        console.note(f"(empty lines have no embedding and no index; there were {empty:,})")

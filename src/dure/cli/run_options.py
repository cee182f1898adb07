"""The options of dure run: their types, and what --help says of each."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="A short name, a hub id, a file or a folder; default: the catalogue's default. "
        "A single argument that has a space and is no file is the PROMPT.",
    ),
]

Prompt = Annotated[
    str | None,
    typer.Argument(
        metavar="PROMPT",
        show_default=False,
        help="The prompt. Piped input is appended to it, or is the prompt. Without either, "
        "on a terminal, a chat starts.",
    ),
]

MaxTokens = Annotated[int | None, typer.Option(min=1, help="Generate at most this many tokens.")]

Temperature = Annotated[float | None, typer.Option(help="Sampling temperature; 0 is greedy.")]

TopK = Annotated[int | None, typer.Option(help="Sample from the k most likely tokens.")]

TopP = Annotated[
    float | None,
    typer.Option(help="Sample from the most likely tokens up to this probability mass."),
]

MinP = Annotated[
    float | None, typer.Option(help="Drop tokens below this share of the top probability.")
]

Seed = Annotated[
    int | None, typer.Option(help="Seed for sampling: the same seed gives the same answer.")
]

Stop = Annotated[list[str] | None, typer.Option(help="Stop before this text; may be repeated.")]

System = Annotated[str | None, typer.Option(help="The system message.")]

Think = Annotated[
    str | None,
    typer.Option(metavar="on|off|N", help="Thinking: on, off, or at most N tokens."),
]

HideThinking = Annotated[
    bool,
    typer.Option("--hide-thinking", "--hidethinking", help="Show one line while the model thinks."),
]

JsonSchema = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|JSON",
        help="Answer in JSON that follows this schema: a file, or the JSON itself.",
    ),
]

Raw = Annotated[bool, typer.Option("--raw", help="Complete the text without a chat template.")]

Context = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Context length in tokens, prompt and answer [default: what fits, up to 32768].",
    ),
]

Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads [default: the physical cores].")
]

Verbose = Annotated[
    bool, typer.Option("--verbose", help="Show tokens, speeds, joules and money on stderr.")
]

Local = Annotated[
    bool,
    typer.Option("--local", help="Load the model here, even if a server has it in memory."),
]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")]

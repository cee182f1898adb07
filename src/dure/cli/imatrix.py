"""dure imatrix: compute a model's importance matrix by running it over a text."""

# ruff: noqa: PLC0415 - the kernels are loaded when the verb runs, not for its --help

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dure.cli import console
from dure.cli.ctrl_c import ends_tidily
from dure.errors import InvalidRequestError


def command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A short name, a hub id, a file or a folder.")
    ],
    text: Annotated[
        Path, typer.Argument(metavar="TEXT", help="A UTF-8 text file, such as the model will see.")
    ],
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT.gguf|OUT.dat", help="The file to write, for --imatrix."),
    ],
    *,
    window: Annotated[int, typer.Option(min=2, help="Tokens per window.")] = 512,
    chunks: Annotated[
        int | None, typer.Option(min=1, show_default="all", help="Windows to compute at most.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    memory: console.Memory = None,
    threads: console.Threads = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    models_dir: console.ModelsDir = None,
) -> None:
    """Compute an importance matrix: which columns of a model's matrices matter most on a text.

    The text is run through the model, a window at a time. Of each matrix, the mean squares of its
    inputs are written, as llama.cpp does: a .gguf file, or .dat for older programs. `dure convert
    --quantize TYPE --imatrix OUT` then makes the errors small where they cost most.
    """
    del models_dir  # set in the environment
    from dure import hub, models
    from dure.formats.imatrix import check_imatrix_target, write_imatrix
    from dure.importance import Watched, compute_imatrix
    from dure.loading.load import load

    if out.suffix not in (".gguf", ".dat"):
        raise InvalidRequestError(f"{out} must end in .gguf or .dat, which says what is written.")
    check_imatrix_target(out, force=force)
    content, watched = console.read_text(text), Watched()
    budget = console.memory_budget(memory)
    with console.loading() as progress:
        loaded = load(
            model,
            threads=threads,
            context=window,
            cache_tokens=window,
            memory=budget,
            on_made=watched.add,
            **progress,
        )
    console.tell_memory(loaded.name, loaded.memory)
    tokens = loaded.tokenizer.encode(content, add_special=False, parse_special=False)
    if chunks is not None:
        tokens = tokens[: chunks * window]
    with console.ProgressLine("computing") as line:
        matrix = compute_imatrix(
            loaded.model,
            watched,
            tokens,
            tensor_aliases=getattr(models.family_of(loaded.checkpoint), "TENSOR_ALIASES", {}),
            dataset=text.name,
            window=window,
            expert_pool=loaded.expert_pool,
            progress=line.update,
        )
    with ends_tidily():
        size = write_imatrix(out, matrix, force=force)
    if json:
        value = {"path": str(out), "size_bytes": size, "entries": len(matrix.entries)}
        console.print_json(value | {"chunks": matrix.chunks, "window": window})
        return
    print(
        f"{out}: {hub.human_bytes(size)}, {len(matrix.entries)} matrices, {matrix.chunks} windows "
        f"of {window} tokens"
    )

"""dure convert: write a folder of safetensors as a GGUF file."""

# ruff: noqa: PLC0415 - the kernels are loaded when the verb runs, not for its --help

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dure.cli import console


def command(
    model: Annotated[
        str, typer.Argument(metavar="IN", help="A folder with config.json and .safetensors files.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT.gguf", help="The file to write.")],
    *,
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="q8|q6|q4",
            help="Bits per weight. q4: experts of a sparse model in 4 bits, all else in 6.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT.gguf if it exists.")] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, show_default="the physical cores", help="CPU threads.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a model as a GGUF file that dure and llama.cpp run.

    Without --quantize every matrix keeps its type. The file appears only when it is complete.
    """
    from dure import hub
    from dure.convert.gguf import convert
    from dure.loading.memory import check_threads
    from dure.weights.quantize import check_scheme

    scheme = None if quantize is None else check_scheme(quantize)
    threads = check_threads(threads)
    folder = hub.resolve(model, allow_download=False).path
    with console.ProgressLine("writing") as line:
        written = convert(
            folder, out, quantize=scheme, threads=threads, force=force, progress=line.update
        )
    if json:
        value = {"path": str(written.path), "size_bytes": written.size_bytes}
        value |= {"architecture": written.architecture, "types": dict(written.types)}
        console.print_json(value)
        return
    mix = ", ".join(f"{count} {dtype}" for dtype, count in written.types.items())
    print(f"{written.path}: {hub.human_bytes(written.size_bytes)}, {mix} tensors")

"""dure convert: write a model as a GGUF file, or a mixture with its experts packed."""

# ruff: noqa: PLC0415 - the kernels are loaded when the verb runs, not for its --help

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dure.cli import console
from dure.errors import InvalidRequestError

if TYPE_CHECKING:
    from dure.weights.quantize import Scheme


def command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="A folder of safetensors with config.json; for OUT.dure a .gguf file, too.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT.gguf|OUT.dure", help="The file to write, or the folder of packed experts."
        ),
    ],
    *,
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="q8|q6|q4",
            help="Bits per weight. q4: experts of a sparse model in 4 bits, all else in 6.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, show_default="the physical cores", help="CPU threads.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a model as a GGUF file that dure and llama.cpp run, or as a .dure folder.

    Without --quantize every matrix keeps its type. What is written appears only when it is
    complete. OUT.dure is for a mixture of experts that is larger than memory: each expert lies on
    disk as dure computes with it, so the start and each expert that is missing cost a read and no
    more. Everything else is in it as it was, and --quantize applies to that when it is loaded.
    """
    from dure import hub
    from dure.loading.memory import check_threads
    from dure.weights.quantize import check_scheme

    if out.suffix not in (".gguf", ".dure"):
        raise InvalidRequestError(
            f"{out} must end in .gguf or .dure, which says what is written.",
            hint="a GGUF file for dure and llama.cpp, or a folder whose experts dure reads as "
            "they lie",
        )
    scheme = None if quantize is None else check_scheme(quantize)
    threads = check_threads(threads)
    source = hub.resolve(model, allow_download=False).path
    write = _write_folder if out.suffix == ".dure" else _write_gguf
    write(source, out, scheme, threads, force=force, json=json)


def _write_gguf(
    folder: Path, out: Path, scheme: Scheme | None, threads: int, *, force: bool, json: bool
) -> None:
    from dure import hub
    from dure.convert.gguf import convert

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


def _write_folder(
    source: Path, out: Path, scheme: Scheme | None, threads: int, *, force: bool, json: bool
) -> None:
    from dure import hub
    from dure.convert.folder import pack_folder

    def tell_size(size: int) -> None:
        console.note(f"{out} will take {hub.human_bytes(size)}")

    with console.ProgressLine("writing") as line, console.ProgressLine("checking") as check:
        written = pack_folder(
            source,
            out,
            quantize=scheme,
            threads=threads,
            force=force,
            tell_size=tell_size,
            progress=line.update,
            checking=check.update,
        )
    if json:
        value = {"path": str(written.path), "size_bytes": written.size_bytes}
        value |= {"expert_bytes": written.expert_bytes, "layers": written.layers}
        value |= {"types": dict(written.types)}
        console.print_json(value)
        return
    mix = " and ".join(written.types)
    print(
        f"{written.path}: {hub.human_bytes(written.size_bytes)}, of which "
        f"{hub.human_bytes(written.expert_bytes)} are the experts of {written.layers} layers "
        f"({mix})"
    )

"""dure convert: write a model as a GGUF file, or a mixture with its experts packed."""

# ruff: noqa: PLC0415 - the kernels are loaded when the verb runs, not for its --help

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dure.cli import console
from dure.cli.ctrl_c import ends_tidily
from dure.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dure.formats.imatrix import ImportanceMatrix


def command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="A folder of safetensors with config.json, or a .gguf file: to be written in "
            "fewer bits, or for OUT.dure.",
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
            metavar="TYPE",
            help="Bits per weight: q8, q6 or q4 (experts of a sparse model in 4 bits, all else in "
            "6), or one of llama.cpp's mixtures: Q8_0, Q6_K, Q5_K_M, Q5_K_S, Q4_K_M, Q4_K_S, "
            "IQ4_XS, IQ4_NL, MXFP4.",
        ),
    ] = None,
    imatrix: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="An importance matrix, of `dure imatrix` or llama.cpp: which columns an error "
            "costs most in.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    threads: console.Threads = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a model as a GGUF file that dure and llama.cpp run, or as a .dure folder.

    Without --quantize every matrix keeps its type. A .gguf file is written anew with --quantize,
    everything but its matrices as it was. What is written is read again, and appears only when it
    is complete. OUT.dure is for a mixture of experts that is larger than memory: each expert lies
    on disk as dure computes with it, so the start and each expert that is missing cost a read and
    no more. Everything else is in it as it was, and --quantize applies to that when it is loaded.
    """
    from dure import hub
    from dure.loading.memory import check_threads

    if out.suffix not in (".gguf", ".dure"):
        raise InvalidRequestError(
            f"{out} must end in .gguf or .dure, which says what is written.",
            hint="a GGUF file for dure and llama.cpp, or a folder whose experts dure reads as "
            "they lie",
        )
    if imatrix is not None and (quantize is None or out.suffix == ".dure"):
        raise InvalidRequestError(
            "--imatrix is for OUT.gguf with --quantize TYPE.", hint="leave it out"
        )
    threads = check_threads(threads)
    source = hub.resolve(model, allow_download=False).path
    with ends_tidily():
        if out.suffix == ".dure":
            _write_folder(source, out, quantize, threads, force=force, json=json)
        else:
            _write_gguf(source, out, quantize, imatrix, threads, force=force, json=json)


def _write_gguf(
    source: Path,
    out: Path,
    quantize: str | None,
    imatrix: Path | None,
    threads: int,
    *,
    force: bool,
    json: bool,
) -> None:
    from dure import hub
    from dure.convert.gguf import convert
    from dure.convert.recipes import recipe_named
    from dure.convert.requantize import requantize
    from dure.formats.checkpoint import open_checkpoint
    from dure.formats.imatrix import read_imatrix

    recipe = None if quantize is None else recipe_named(quantize)
    importance: ImportanceMatrix | None = None if imatrix is None else read_imatrix(imatrix)
    again = recipe is not None and open_checkpoint(source).kind == "gguf"
    with console.ProgressLine("writing") as line, console.ProgressLine("checking") as check:
        options: dict[str, Any] = {
            "importance": importance,
            "threads": threads,
            "force": force,
            "tell_size": _teller(out),
            "progress": line.update,
            "checking": check.update,
        }
        value: dict[str, object]
        if again and recipe is not None:
            anew = requantize(source, out, recipe, **options)
            value = {"again": anew.again, "weighed": anew.weighed}
            written = anew.written
        else:
            written, value = convert(source, out, quantize=quantize, **options), {}
    if json:
        whole = {"path": str(written.path), "size_bytes": written.size_bytes}
        whole |= {"architecture": written.architecture, "types": dict(written.types), **value}
        console.print_json(whole)
        return
    if value.get("again"):
        console.note(
            f"{value['again']} tensors were quantised already: their errors add up, so give a file "
            "of more bits if there is one"
        )
    mix = ", ".join(f"{count} {dtype}" for dtype, count in written.types.items())
    print(f"{written.path}: {hub.human_bytes(written.size_bytes)}, {mix} tensors")


def _teller(out: Path) -> Callable[[int], None]:
    """Make what says how large the output will be, before it is written."""
    from dure import hub

    return lambda size: console.note(f"{out} will take {hub.human_bytes(size)}")


def _write_folder(
    source: Path, out: Path, quantize: str | None, threads: int, *, force: bool, json: bool
) -> None:
    from dure import hub
    from dure.convert.folder import pack_folder
    from dure.weights.quantize import check_scheme

    scheme = None if quantize is None else check_scheme(quantize)
    with console.ProgressLine("writing") as line, console.ProgressLine("checking") as check:
        written = pack_folder(
            source,
            out,
            quantize=scheme,
            threads=threads,
            force=force,
            tell_size=_teller(out),
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

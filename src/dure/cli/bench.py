"""dure bench: measure the prefill and decode speed of a model."""

# ruff: noqa: PLC0415 - the kernels are loaded when the verb runs, not for its --help

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from dure.cli import console
from dure.errors import InvalidRequestError


def command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A short name, a hub id, a file or a folder.")
    ],
    *,
    prompt: Annotated[int, typer.Option(min=0, help="Tokens to prefill.")] = 512,
    decode: Annotated[int, typer.Option(min=0, help="Tokens to decode, one step each.")] = 64,
    depth: Annotated[int, typer.Option(min=0, help="Tokens in the cache before decoding.")] = 0,
    batch: Annotated[int, typer.Option(min=1, max=512, help="Sequences decoded together.")] = 1,
    repeat: Annotated[int, typer.Option(min=1, max=1000, help="Rounds after the warm-up.")] = 3,
    cache: Annotated[
        console.Cache,
        typer.Option(help="KV cache type: f16, or q8 for about half the memory."),
    ] = console.Cache.f16,
    quantize: console.Quantize = None,
    memory: console.Memory = None,
    threads: Annotated[
        int | None, typer.Option(min=1, show_default="the physical cores", help="CPU threads.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    models_dir: console.ModelsDir = None,
) -> None:
    """Measure prefill and decode speed in tokens per second on this machine.

    Tokens are fixed; nothing is sampled. Each figure is the median of --repeat rounds after one
    warm-up; decode speed is the total of all --batch sequences.
    """
    del models_dir  # set in the environment
    from dure import benchmark
    from dure.loading.load import load

    if not prompt and not decode:
        raise InvalidRequestError("Nothing to measure: --prompt and --decode are both 0.")
    sizes = {"prompt": prompt, "decode": decode, "depth": depth, "batch": batch}
    budget = console.memory_budget(memory)
    with console.loading() as progress:
        loaded = load(
            model,
            threads=threads,
            context=max(prompt, depth + decode, 1),
            cache_tokens=max(prompt, batch * (depth + decode)),
            cache_dtype=cache.value,
            quantize=quantize,
            with_tokenizer=False,
            memory=budget,
            **progress,
        )
    console.tell_memory(loaded.name, loaded.memory)
    with console.ProgressLine("measuring") as line:
        speeds = benchmark.speed(
            loaded.model,
            **sizes,
            repeat=repeat,
            cache_dtype=loaded.cache_dtype,
            expert_pool=loaded.expert_pool,
            chunk=loaded.memory.prefill_rows,
            progress=line.update,
        )
    if json:
        facts = {
            "model": loaded.name,
            "threads": loaded.threads,
            "cache": cache.value,
            **sizes,
            "repeat": repeat,
        }
        console.print_json({**facts, **speeds})
        return
    if speeds["prefill_tps"] is not None:
        read = _read(speeds, "prefill")
        print(f"prefill {speeds['prefill_tps']:9.2f} tok/s   {prompt} tokens{read}")
    if speeds["decode_tps"] is not None:
        after = f" after {depth}" if depth else ""
        together = f", {batch} sequences together" if batch > 1 else ""
        more = f"{after}{together}{_read(speeds, 'decode')}"
        print(f"decode  {speeds['decode_tps']:9.2f} tok/s   {decode} tokens{more}")


def _read(speeds: Mapping[str, float | None], phase: str) -> str:
    """Format what a token read from disk, and how often it found an expert; empty if all fits."""
    if f"{phase}_read_mb" not in speeds:
        return ""
    read, hits = speeds[f"{phase}_read_mb"], speeds[f"{phase}_hit_rate"]
    return f", {read:.1f} MB a token from disk, {100 * (hits or 0):.1f} % hits"

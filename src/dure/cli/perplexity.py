"""dure perplexity: measure how well a model predicts a text."""

# ruff: noqa: PLC0415 - the kernels are loaded when the verb runs, not for its --help

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from dure.cli import console
from dure.cli.ctrl_c import ends_soon


def command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A short name, a hub id, a file or a folder.")
    ],
    text: Annotated[Path, typer.Argument(metavar="TEXT", help="A UTF-8 text file.")],
    *,
    window: Annotated[int, typer.Option(min=2, help="Tokens per window.")] = 512,
    quantize: console.Quantize = None,
    exact: console.Exact = False,
    cache: console.CacheType = console.Cache.f16,
    memory: console.Memory = None,
    threads: console.Threads = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    models_dir: console.ModelsDir = None,
) -> None:
    """Measure the perplexity of a text: exp of the mean loss, lower is better.

    The text is split into windows. The second half of each full window is scored, with the first
    half as its context. No special tokens are added. After ± is the standard error; tokens after
    the last full window are not scored, and counted.
    """
    del models_dir  # set in the environment
    from dure import benchmark
    from dure.loading.load import load

    content = console.read_text(text)
    budget = console.memory_budget(memory)
    with console.loading() as progress:
        loaded = load(
            model,
            threads=threads,
            exact=exact,
            quantize=quantize,
            context=window,
            cache_tokens=window,
            cache_dtype=cache.value,
            memory=budget,
            **progress,
        )
    console.tell_memory(loaded.name, loaded.memory)
    tokenizer = loaded.tokenizer
    tokens = tokenizer.encode(content, add_special=False, parse_special=False)
    with ends_soon(), console.ProgressLine("scoring") as line:
        result = benchmark.perplexity(
            loaded.model,
            tokens,
            window=window,
            cache_dtype=loaded.cache_dtype,
            expert_pool=loaded.expert_pool,
            progress=line.update,
        )
    result["perplexity"] = round(result["perplexity"], 5)
    error = result["standard_error"]
    if json:
        facts = {"model": loaded.name, "window": window, "exact": exact, "cache": cache.value}
        known = None if math.isnan(error) else round(error, 5)
        console.print_json({**facts, **result, "standard_error": known})
        return
    spread = "" if math.isnan(error) else f" ± {error:.5f}"
    left = ""
    if result["tail"]:
        left = f"; the last {result['tail']:,} of {result['tokens']:,} fill no window"
    scored = f"{result['scored']:,} tokens scored{left}"
    print(f"perplexity {result['perplexity']:.5f}{spread}   {scored}")

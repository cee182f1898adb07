"""Valid but unusual configs of every family, held to transformers: `python tests/family_grid.py`.

Each is a tiny model with all its parameters drawn, saved as transformers saves it. Its logits are
transformers' in one pass; token by token, in pieces beside others, from a reused prefix and after
a preemption they are the same bits. Where transformers' own scores say that a choice of experts or
of keys is a tie (choices.py), and the logits differ from there on, the model gets other tokens:
no row is left out.

    python tests/family_grid.py                 every config of every family
    python tests/family_grid.py --part 2/4      every fourth config, from the second on
    python tests/family_grid.py phi3 "odd widths"    those whose names have one of these words

It prints a line a config, and at the end a line a family, what failed, and the versions.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from choices import tied_rows
from tiny_configs import MODELS, RECURRENT, UNUSUAL, unusual, unusual_qwen
from tiny_models import (
    NUMPY,
    STAND_INS,
    PagedRun,
    furthest,
    loaded,
    oracle_logits,
    oracle_of,
    random_sequences,
    reopened,
    saved_as,
)

from dure.models import Model

TOLERANCE, RECURRENT_TOLERANCE = 1e-4, 5e-4
GRID: dict[str, tuple[str, dict[str, Any]]] = {**MODELS, **UNUSUAL}

# How a folder is saved: as makers name and stack tensors, as memory has them, in halves. Which one
# a config gets is decided by its name alone, so that a new config changes no other's.
SAVES: tuple[tuple[dict[str, Any], str | None], ...] = (
    ({}, None),
    ({"save_original_format": False}, None),
    ({}, "bfloat16"),
    ({}, "float16"),
)
SEEDS = (5, 6, 7, 8)  # of the tokens: the next one's where a choice is a tie
TOGETHER = [(0, 20, 0), (33, 1, 2), (37, 0, 1), (0, 0, 2)]


def save_of(name: str) -> tuple[dict[str, Any], str | None]:
    """How the config's folder is saved: options of save_pretrained, and a dtype or None."""
    options, dtype = SAVES[zlib.crc32(name.encode()) % len(SAVES)]
    family = GRID[name][0]
    if family in STAND_INS or family in NUMPY:  # which transformers could not read again
        return {}, None
    return options, dtype


def sample() -> list[str]:
    """The names of two configs for each family of tiny_configs/unusual.py and unusual_qwen.py."""
    chosen = []
    for module in (unusual, unusual_qwen):
        for family in module.FAMILIES:
            names = [name for name, each in module.UNUSUAL.items() if each[0] == family]
            chosen += [names[0], names[len(names) // 2]]
    return chosen


@dataclass(frozen=True)
class Held:
    """A config's model, and logits that are transformers'."""

    model: Model
    sequences: list[list[int]]
    logits: list[np.ndarray]  # (tokens, vocabulary) of each sequence, of one pass
    distance: float  # the furthest from transformers
    drawn_anew: int  # how often the tokens were, as a choice was a tie


def held(name: str, folder: Path, *lengths: int, tolerance: float | None = None) -> Held:
    """Save a config's model, and hold sequences of these lengths to transformers in one pass.

    tolerance: the family's, unless it is said. Raises AssertionError.
    """
    family, settings = GRID[name]
    options, dtype = save_of(name)
    model = oracle_of(family, settings)
    if dtype is not None:
        import torch  # noqa: PLC0415

        model = model.to(getattr(torch, dtype))
    saved_as(family, model, folder, **options)
    if dtype is not None:
        model = reopened(folder)
    ours = loaded(folder)
    if tolerance is None:
        tolerance = RECURRENT_TOLERANCE if family in RECURRENT else TOLERANCE
    for drawn_anew, seed in enumerate(SEEDS):
        sequences = random_sequences(*lengths, seed=seed)
        at_once = PagedRun(ours, sequences).finish([lengths])
        distance = distance_of(model, sequences, at_once, tolerance)
        if distance is not None:
            return Held(ours, sequences, at_once, distance, drawn_anew)
    raise AssertionError(f"a tie in each of {len(SEEDS)} draws of tokens")


def check(name: str, folder: Path) -> tuple[float, int]:
    """Hold a config to transformers. Raises AssertionError.

    Return how far its logits are, and how often the tokens were drawn anew, as there was a tie.
    """
    found = held(name, folder, 70, 21, 5)
    ours, sequences, at_once = found.model, found.sequences, found.logits
    in_pieces = PagedRun(ours, sequences, seed=1).finish(TOGETHER)
    for whole, pieces in zip(at_once, in_pieces, strict=True):
        assert np.array_equal(whole, pieces), "other bits in pieces"
    (one_by_one,) = PagedRun(ours, sequences[1:2]).finish([(1,)] * len(sequences[1]))
    assert np.array_equal(at_once[1], one_by_one), "other bits token by token"
    _check_in_the_engine(ours, sequences)
    return found.distance, found.drawn_anew


def distance_of(
    model: Any, sequences: Sequence[Sequence[int]], logits: Sequence[np.ndarray], tolerance: float
) -> float | None:
    """Return how far the logits are from the oracle's; None if they differ by ties alone.

    Raises AssertionError if a row differs before which, and in which, there is no tie.
    """
    distance, is_tied = 0.0, False
    for tokens, rows in zip(sequences, logits, strict=True):
        expected = oracle_logits(model, tokens)
        far = furthest(expected, rows)
        if far < tolerance:
            distance = max(distance, far)
            continue
        wrong = first_wrong(expected, rows, tolerance)
        ties = tied_rows(model, tokens)
        assert min(ties, default=len(tokens)) <= wrong, f"{far:.1e} from transformers, row {wrong}"
        is_tied = True
    return None if is_tied else distance


def first_wrong(expected: np.ndarray, actual: np.ndarray, tolerance: float) -> int:
    """Return the first row that is not within the tolerance, as one with a NaN is not."""
    within = (np.abs(expected - actual) < tolerance).all(axis=1)
    return int(np.argmin(within))


def _check_in_the_engine(model: Any, sequences: Sequence[Sequence[int]]) -> None:
    """Let requests share a prefix, and be preempted; assert that each gets its bits when alone."""
    from dure.engine.engine import Engine  # noqa: PLC0415
    from dure.engine.model_runner import ModelRunner  # noqa: PLC0415
    from dure.engine.request import SamplingParams  # noqa: PLC0415

    params = SamplingParams(max_tokens=9, temperature=0.8, seed=1, logprobs=4, ignore_eos=True)
    long, other, short = sequences
    prompts = [[*long, *short[:1]], [*other, *long[:40]], [*short, *long[:54]]]

    def run(engine: Engine, *given: Sequence[int]) -> list[Any]:
        requests = [engine.add(list(prompt), params) for prompt in given]
        while engine.has_work:
            engine.step()
        return requests

    def engine(blocks: int) -> Engine:
        runner = ModelRunner(model, num_blocks=blocks, num_states=64, cache_dtype="f32")
        return Engine(runner, max_batch_tokens=33)

    roomy, crowded = engine(40), engine(5)
    alone = [run(roomy, prompt)[0] for prompt in prompts]
    run(crowded, long)
    together = run(crowded, *prompts)
    assert together[0].num_cached_tokens >= 64, "no prefix was reused"
    assert crowded.stats.preemptions > 0, "no request was preempted"
    for one, other_one in zip(alone, together, strict=True):
        same = (one.output_ids, one.logprobs) == (other_one.output_ids, other_one.logprobs)
        assert same, "other bits in the engine"


def versions() -> str:
    """Say what was compared."""
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    import dure  # noqa: PLC0415

    return ", ".join(f"{each.__name__} {each.__version__}" for each in (dure, transformers, torch))


def share(names: Sequence[str], part: str) -> list[str]:
    """Every N-th of the names, for "K/N": the N shares make up the whole. Raises ValueError."""
    number, _, of = part.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise ValueError(f"--part {part}: give K/N, a share from 1/N to N/N, such as 2/4")
    return list(names[int(number) - 1 :: int(of)])


def _told(name: str) -> tuple[float, int, str]:
    """Check a config in a folder of its own: what `check` returns, and what failed, if any."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return *check(name, Path(folder)), ""
        except Exception as error:  # all are told at the end
            return 0.0, 0, f"{name} {save_of(name)}: {type(error).__name__}: {error}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the configs that are asked for, a line each, then sum up. 1 if one failed."""
    import transformers  # noqa: PLC0415

    parser = argparse.ArgumentParser(description="Hold configs of every family to transformers.")
    parser.add_argument("words", nargs="*", help="run those whose names have one of these")
    parser.add_argument("--part", default="1/1", help="run a share: K/N, such as 2/4")
    asked = parser.parse_args(arguments)
    names = [name for name in GRID if not asked.words or any(word in name for word in asked.words)]
    try:
        names = share(names, asked.part)
    except ValueError as error:
        parser.error(str(error))
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    print(versions(), flush=True)
    worst: dict[str, float] = {}
    done, ties, faults = Counter[str](), Counter[str](), []
    began = time.process_time()
    for number, name in enumerate(names, start=1):
        family = GRID[name][0]
        distance, drawn_anew, fault = _told(name)
        done[family] += 1
        ties[family] += bool(drawn_anew)
        worst[family] = max(worst.get(family, 0.0), distance)
        faults += [fault] * bool(fault)
        outcome = f"FAILED {fault}" if fault else f"{distance:.1e}  {name}"
        outcome += ", with other tokens, as a choice was a tie" if drawn_anew else ""
        print(f"{number:4} of {len(names)}  {outcome}", flush=True)
    print(f"\n{'family':20} configs  with other tokens  furthest from transformers")
    for family in sorted(worst):
        print(f"{family:20} {done[family]:7}  {ties[family]:17}  {worst[family]:.1e}")
    print("".join(f"\nFAILED {fault}" for fault in faults))
    seconds = time.process_time() - began
    print(versions())
    print(
        f"{len(worst)} families, {len(names)} of {len(GRID)} configs, {len(faults)} failed, "
        f"{ties.total()} with other tokens, {seconds:.0f} s of a processor"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())

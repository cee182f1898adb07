"""MiMo-V2's three layers that draft, of which each looks a token further than the one before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_mtp import Always, Headed, batch, caches, hidden_of, with_heads
from tiny_gguf import write_folder, write_gguf
from tiny_models import drawn, furthest, loaded

from dure.engine.engine import Engine
from dure.engine.model_runner import ModelRunner
from dure.engine.request import Request, SamplingParams
from dure.engine.sampler import Sampler
from dure.engine.spec_decode.heads import DraftHeads
from dure.engine.spec_decode.several_heads import SeveralHeads
from dure.formats.checkpoint import open_checkpoint
from dure.loading.describe import describe

NAME = "mimo_v2_flash"
HEADS = 3
GREEDY = SamplingParams(max_tokens=24, temperature=0, logprobs=2, ignore_eos=True)
Arrays = dict[str, np.ndarray]


@pytest.fixture
def headed(tiny: Callable[[str], Any], tmp_path: Path) -> Headed:
    return Headed(NAME, tiny(NAME), tmp_path / "one")


def drafting(headed: Headed, prefix: str) -> list[Arrays]:
    """The tensors of three layers; `prefix` is of their names, {} their number."""
    return [
        {
            key.replace("model.mtp.layers.0.", f"{prefix.format(number)}."): drawn(
                f"{number}.{key}", values.shape
            )
            for key, values in headed.extra.items()
        }
        for number in range(HEADS)
    ]


def trunk_of(headed: Headed) -> Arrays:
    return {key: each for key, each in headed.parameters.items() if ".mtp." not in key}


def folder_of(headed: Headed, path: Path, layers: Sequence[Arrays]) -> Path:
    parameters = trunk_of(headed)
    for each in layers:
        parameters |= each
    return write_folder(path, headed.config, parameters)


@pytest.fixture
def three(headed: Headed, tmp_path: Path) -> Path:
    return folder_of(headed, tmp_path / "three", drafting(headed, "model.mtp.layers.{}"))


def rows_of(tokens: Sequence[int], further: int) -> Any:
    """The rows of a head whose tokens stand 1 + `further` after the hidden states."""
    return batch(tokens[1 + further :], 0, len(tokens) - 1 - further)


def test_each_layer_is_what_it_is_as_the_only_one(
    headed: Headed, three: Path, tmp_path: Path
) -> None:
    """The only one is held to transformers' parts in test_mtp.py."""
    model, tokens = with_heads(three), headed.tokens
    assert model.num_draft_heads == len(model.draft_cache_specs) == HEADS
    hidden = hidden_of(model, tokens)
    cache = caches(model.draft_cache_specs)
    for number, layer in enumerate(drafting(headed, "model.mtp.layers.0")):
        alone = with_heads(folder_of(headed, tmp_path / f"{number}", [layer]))
        assert alone.num_draft_heads == 1
        rows = rows_of(tokens, number)
        given = hidden[: len(rows.tokens)]
        expected = alone.draft(given, rows, caches(alone.draft_cache_specs))
        actual = model.draft(given, rows, cache, head=number)
        assert [each.tobytes() for each in actual] == [each.tobytes() for each in expected]


def test_a_gguf_has_the_same_three(headed: Headed, three: Path, tmp_path: Path) -> None:
    layers = headed.config["num_hidden_layers"]
    parameters = trunk_of(headed)
    for number, layer in enumerate(drafting(headed, "model.layers.{}")):
        index = layers + number
        for key, values in layer.items():
            name = key.replace(f"model.layers.{number}.", f"model.layers.{index}.")
            name = name.replace(".final_layernorm", ".layer_output_norm")
            if name.endswith(("norm.weight", "eh_proj.weight")) and "attention" not in name:
                name = name.replace(f"model.layers.{index}.", f"blk.{index}.")
                for part in ("enorm", "hnorm", "eh_proj"):
                    name = name.replace(f".{part}", f".nextn.{part}")
            name = name.replace(f"blk.{index}.input_layer", f"model.layers.{index}.input_layer")
            parameters[name] = values
    more = {"num_hidden_layers": layers + HEADS, "num_nextn_predict_layers": HEADS}
    for key, kind in (("layer_types", "sliding_attention"), ("mlp_layer_types", "dense")):
        more[key] = [*headed.config[key], *[kind] * HEADS]
    path = tmp_path / "model.gguf"
    write_gguf(path, {**headed.config, **more}, parameters)
    model, folder = with_heads(path), with_heads(three)
    assert model.draft_cache_specs == folder.draft_cache_specs, model.draft_problem
    hidden = hidden_of(folder, headed.tokens)
    for number in range(HEADS):
        rows = rows_of(headed.tokens, number)
        given = hidden[: len(rows.tokens)]
        made = [
            each.draft(given, rows, caches(each.draft_cache_specs), head=number)[1]
            for each in (folder, model)
        ]
        assert furthest(*made) < 1e-4


def test_layers_behind_one_that_is_incomplete_are_left_out(headed: Headed, tmp_path: Path) -> None:
    layers = drafting(headed, "model.mtp.layers.{}")
    del layers[1]["model.mtp.layers.1.mlp.up_proj.weight"]
    folder = folder_of(headed, tmp_path / "part", layers)
    assert with_heads(folder).num_draft_heads == 1
    assert describe(open_checkpoint(folder)).has_draft_heads
    assert loaded(folder).num_draft_heads == 0  # where they are not asked for


class Checked(Always):
    """Holds what is guessed to what the heads say of all rows at once.

    In every second step the engine gets the right tokens in place of these guesses.
    """

    def __init__(self, source: DraftHeads, model: Any, answers: Sequence[Sequence[int]]) -> None:
        super().__init__(source)
        self.model, self.answers, self.checked, self.steps = model, answers, 0, 0

    def propose(
        self, requests: Sequence[Request], limits: Sequence[int], rows: int
    ) -> Sequence[Sequence[int]]:
        proposed = super().propose(requests, limits, rows)
        for request, token_ids in zip(requests, proposed, strict=True):
            assert list(token_ids) == self._all_at_once(request.tokens)[: len(token_ids)]
            self.checked += len(token_ids)
        self.steps += 1
        if self.steps % 2:
            return proposed
        return [
            self._right(request)[: min(limit, HEADS)]
            for request, limit in zip(requests, limits, strict=True)
        ]

    def _right(self, request: Request) -> Sequence[int]:
        tokens = list(request.tokens)
        return next(each[len(tokens) :] for each in self.answers if each[: len(tokens)] == tokens)

    def _all_at_once(self, tokens: Sequence[int]) -> list[int]:
        hidden = hidden_of(self.model, tokens[:-1])
        tokens, guesses = list(tokens), []
        for head in range(HEADS):
            given = batch(tokens[1 + head :], 0, len(hidden), [len(hidden) - 1])
            cache = caches(self.model.draft_cache_specs)
            _, logits = self.model.draft(hidden, given, cache, head=head)
            guesses.append(int(logits.argmax()))
            tokens.append(guesses[-1])
        return guesses


@pytest.mark.parametrize("limit", [5, 24])
def test_guesses_are_what_the_layers_say_of_all_rows_at_once(
    headed: Headed, three: Path, limit: int
) -> None:
    """However prompts come, and whatever became of the guesses before."""
    model = with_heads(three)

    def answers(drafter: Checked | None, runner: ModelRunner) -> tuple[Engine, list[list[int]]]:
        engine = Engine(runner, max_batch_tokens=limit, max_sequences=3, drafter=drafter)
        requests = [engine.add(headed.tokens[-length:], GREEDY) for length in (1, 2, 3, 40)]
        while engine.has_work:
            engine.step()
        return engine, [list(request.tokens) for request in requests]

    def runner(draft_heads: bool) -> ModelRunner:
        return ModelRunner(model, num_blocks=24, cache_dtype="f32", draft_heads=draft_heads)

    _, expected = answers(None, runner(False))
    headed_runner = runner(True)
    drafter = Checked(SeveralHeads(headed_runner, Sampler()), model, expected)
    engine, actual = answers(drafter, headed_runner)
    assert actual == expected
    assert drafter.checked > HEADS * 20
    assert 20 < engine.stats.accepted_tokens < engine.stats.drafted_tokens


def test_answers_are_the_same_with_and_without(headed: Headed, three: Path) -> None:
    """Bit for bit, in company, with prompts in pieces, blocks that run out and prefixes found."""
    model = with_heads(three)
    prompts = [headed.tokens[:n] for n in (3, 40, 64, 65)]
    params = [GREEDY, SamplingParams(max_tokens=30, temperature=1, seed=1, logprobs=1)]

    def answers(draft: bool) -> tuple[list[Any], Engine]:
        runner = ModelRunner(model, num_blocks=11, draft_heads=draft)
        drafter = Always(SeveralHeads(runner, Sampler())) if draft else None
        engine = Engine(runner, max_batch_tokens=24, max_sequences=4, drafter=drafter)
        done = []
        for _ in range(2):
            requests = [engine.add(p, params[i % 2]) for i, p in enumerate(prompts)]
            while engine.has_work:
                engine.step()
            assert not any(request.error for request in requests)
            done += [(request.output_ids, request.logprobs) for request in requests]
        return done, engine

    expected, _ = answers(False)
    actual, engine = answers(True)
    assert actual == expected
    assert engine.stats.drafted_tokens > 100
    assert engine.stats.cached_tokens > 0

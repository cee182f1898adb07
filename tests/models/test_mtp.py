"""Layers that guess the token after the next: their logits are transformers', however rows come."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_gguf import read_folder, write_folder, write_gguf
from tiny_models import _wide_delta_rule, drawn, furthest, loaded, prefill_logits

from dure.batch import Batch, States
from dure.engine.engine import Engine
from dure.engine.model_runner import ModelRunner
from dure.engine.request import Request, SamplingParams
from dure.engine.sampler import Sampler
from dure.engine.spec_decode.draft import StepResult
from dure.engine.spec_decode.heads import DraftHeads
from dure.formats.checkpoint import open_checkpoint
from dure.models import load_model

DEEPSEEK = ("enorm", "hnorm", "eh_proj", "shared_head.norm")
NEXTN = ("enorm", "hnorm", "eh_proj", "shared_head_norm")
RECURRENT = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
TINY = (
    *("deepseek_v3", "deepseek_v3-bias", "glm4_moe", "glm4_moe_lite", "ernie4_5_moe"),
    *("deepseek_v32", "glm_moe_dsa", "mimo_v2_flash"),
    *RECURRENT,
)


def names_of(name: str, layers: int) -> tuple[str, tuple[str, ...]]:
    """What checkpoints of a family call the block, and the parts around it."""
    if name in RECURRENT:
        parts = ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "fc", "norm")
        return "mtp.layers.0", tuple(f"mtp.{part}" for part in parts)
    if name == "ernie4_5_moe":
        parts = ("mtp_emb_norm.0", "mtp_hidden_norm.0", "mtp_linear_proj.0")
        return "model.mtp_block.0", (*(f"model.{part}" for part in parts), "")
    if name == "mimo_v2_flash":
        block = "model.mtp.layers.0"
        return block, tuple(f"{block}.{part}" for part in (*DEEPSEEK[:3], "final_layernorm"))
    block = f"model.layers.{layers}"
    return block, tuple(f"{block}.{part}" for part in DEEPSEEK)


class Headed:
    """A tiny model with a drafting layer: transformers' parts put together, and our checkpoint."""

    def __init__(self, name: str, small: Any, folder: Path) -> None:
        import torch  # noqa: PLC0415

        self.torch, self.oracle, self.tokens = torch, small.oracle, small.sequences[0]
        self.before_norm = name in ("ernie4_5_moe", "mimo_v2_flash")
        self.window = small.oracle.config.sliding_window if name == "mimo_v2_flash" else None
        self.config, parameters = read_folder(small.folder)
        layers = self.config["num_hidden_layers"]
        block_name, names = names_of(name, layers)
        if names[3].endswith("shared_head.norm"):
            self.config = {**self.config, "num_nextn_predict_layers": 1}
        # ERNIE's is dense, the others as the last; MiMo's is dense, and has a window.
        source, dense = (0, 0) if self.before_norm else (layers - 1, layers - 1)
        source = 1 if self.window else source
        hidden = self.config["hidden_size"]
        self.extra = {
            key.replace(f"model.layers.{layer}.", f"{block_name}."): values.shape
            for layer, of_mlp in ((source, False), (dense, True))
            for key, values in parameters.items()
            if key.startswith(f"model.layers.{layer}.") and (".mlp." in key) == of_mlp
        }
        shapes = ((hidden,), (hidden,), (hidden, 2 * hidden), (hidden,))
        for part, shape in zip(names, shapes, strict=True):
            if part:
                self.extra[f"{part}.weight"] = shape
        self.extra = {key: drawn(f"drafts.{key}", shape) for key, shape in self.extra.items()}
        self.parameters = {**parameters, **self.extra}
        published = {
            key.replace(".mtp.layers.0.post_attention_", ".mtp.layers.0.pre_mlp_"): values
            for key, values in self.parameters.items()
        }
        self.folder = write_folder(folder, self.config, published)
        self.names, self.block_name = names, block_name
        module = self.oracle.model.layers[source]
        index = (
            self.oracle.config.layer_types.index("full_attention") if name in RECURRENT else source
        )
        own = copy.deepcopy(self.oracle.config)
        if self.window:
            own.mlp_layer_types = ["dense"] * layers
        self.block = type(module)(own, index)
        self.block.load_state_dict(
            {key: torch.tensor(self._of_block(key)) for key in self.block.state_dict()}
        )
        self.block.eval()

    def _of_block(self, key: str) -> np.ndarray:
        """A parameter of transformers' block, whose experts are stacked."""
        key = key.replace("self_attn.sinks", "self_attn.attention_sink_bias")
        prefix = f"{self.block_name}.{key.rpartition('.')[0]}"
        if key.endswith("experts.gate_up_proj"):
            parts = [self._experts(prefix, part) for part in ("gate_proj", "up_proj")]
            return np.concatenate(parts, axis=1)
        if key.endswith("experts.down_proj"):
            return self._experts(prefix, "down_proj")
        return self.extra[f"{self.block_name}.{key}"]

    def _experts(self, prefix: str, part: str) -> np.ndarray:
        count = sum(key.startswith(prefix + ".") and f".{part}." in key for key in self.extra)
        return np.stack([self.extra[f"{prefix}.{i}.{part}.weight"] for i in range(count)])

    def _norm(self, x: Any, name: str) -> Any:
        if not name:
            return self.oracle.model.norm(x)
        made = type(self.oracle.model.norm)(x.shape[-1], eps=self.config["rms_norm_eps"])
        made.load_state_dict({"weight": self.torch.tensor(self.extra[f"{name}.weight"])})
        return made(x)

    def states(self) -> Any:
        """The trunk's hidden states, as the drafting layer takes them."""
        seen: list[Any] = []
        norm = self.oracle.model.norm
        hook = norm.register_forward_hook(
            lambda _, i, o: seen.append(i[0] if self.before_norm else o)
        )
        with self.torch.no_grad(), _wide_delta_rule(self.oracle):
            self.oracle(self.torch.tensor([self.tokens]))
        hook.remove()
        return seen[0]

    def expected(self, hidden: Any, following: Sequence[int]) -> tuple[Any, np.ndarray]:
        """Hidden states and logits after `following`, whose earlier tokens `hidden` is of."""
        torch, model = self.torch, self.oracle.model
        with torch.no_grad():
            embedded = model.embed_tokens(torch.tensor([list(following)]))
            both = self._norm(embedded, self.names[0]), self._norm(hidden, self.names[1])
            x = torch.cat(both, -1) @ torch.tensor(self.extra[f"{self.names[2]}.weight"]).T
            count = x.shape[1]
            positions = torch.arange(count)[None]
            mask = torch.full((count, count), float("-inf")).triu(1)[None, None]
            kind = ()
            if self.window:
                mask = mask + torch.full((count, count), float("-inf")).tril(-self.window)
                kind = ("sliding_attention",)
            turned = model.rotary_emb(x, positions, *kind)
            x = self.block(
                x, position_embeddings=turned, attention_mask=mask, position_ids=positions
            )
            x = x[0] if isinstance(x, tuple) else x  # GLM-5's has its choice beside it
            normed = self._norm(x, self.names[3])
            return (x if self.before_norm else normed), self.oracle.lm_head(normed)[0].numpy()


@pytest.fixture(params=TINY)
def headed(request: Any, tiny: Callable[[str], Any], tmp_path: Path) -> Headed:
    return Headed(request.param, tiny(request.param), tmp_path / "headed")


def with_heads(path: Path) -> Any:
    return load_model(open_checkpoint(path), exact=True, draft_heads=True)


def batch(tokens: Sequence[int], start: int, stop: int, rows: Sequence[int] | None = None) -> Batch:
    """Rows [start, stop) of one sequence, whose blocks are 2, 0 and 1."""
    count = stop - start
    return Batch(
        tokens=np.array(tokens[start:stop], np.int32),
        positions=np.arange(start, stop, dtype=np.int32),
        sequences=np.zeros(count, np.int32),
        block_tables=np.array([[2, 0, 1]], np.int32),
        logit_rows=np.array(range(count) if rows is None else rows, np.int32),
        states=States(np.zeros(1, np.int32), np.empty((0, 2), np.int32)),
    )


def caches(specs: Sequence[Any]) -> tuple[np.ndarray, ...]:
    return tuple(
        np.full((3, *spec.block_shape()), np.nan, np.float32)
        if hasattr(spec, "block_shape")
        else np.full((2, spec.size), np.nan, np.float32)
        for spec in specs
    )


def hidden_of(model: Any, tokens: Sequence[int]) -> np.ndarray:
    rows = batch(tokens, 0, len(tokens))
    return model.draft_hidden(model.run(model.embed(rows), rows, caches(model.kv_cache_specs)))


@pytest.mark.parametrize("cut", [[74], [1] * 74, [7, 1, 32, 34]])
def test_guesses_are_transformers_however_the_rows_come(headed: Headed, cut: list[int]) -> None:
    model, tokens = with_heads(headed.folder), headed.tokens
    states = headed.states()
    hidden = hidden_of(model, tokens)
    assert furthest(states[0].numpy(), hidden) < 5e-4
    wanted_states, wanted = headed.expected(states[:, :-1], tokens[1:])
    cache, made, start = caches(model.draft_cache_specs), [], 0
    for count in cut:
        step = batch(tokens[1:], start, start + count)
        made.append(model.draft(hidden[start : start + count], step, cache))
        start += count
    assert furthest(wanted, np.concatenate([logits for _, logits in made])) < 5e-4
    assert furthest(wanted_states[0].numpy(), np.concatenate([each for each, _ in made])) < 5e-4
    # The same bits in one pass as in pieces, and of one row alone.
    whole = model.draft(hidden[:-1], batch(tokens[1:], 0, 74), caches(model.draft_cache_specs))
    assert whole[1].tobytes() == np.concatenate([logits for _, logits in made]).tobytes()
    last = batch(tokens[1:], 0, 74, [73])
    alone = model.draft(hidden[:-1], last, caches(model.draft_cache_specs))
    assert alone[1].tobytes() == whole[1][73:].tobytes()
    nothing = model.draft(
        hidden[:-1], batch(tokens[1:], 0, 74, []), caches(model.draft_cache_specs)
    )
    assert nothing[1].shape == (0, model.vocab_size)


def test_a_second_guess_goes_on_from_the_first_ones_state(headed: Headed) -> None:
    torch, tokens = headed.torch, headed.tokens[:40]
    model = with_heads(headed.folder)
    hidden = hidden_of(model, tokens)[:-1]
    cache = caches(model.draft_cache_specs)
    state, logits = model.draft(hidden, batch(tokens[1:], 0, 39, [38]), cache)
    guess = int(logits.argmax())
    extended = [*tokens[1:], guess]
    _, second = model.draft(state, batch(extended, 39, 40), cache)
    both = torch.cat([torch.tensor(hidden), torch.tensor(state)])[None]
    _, wanted = headed.expected(both, extended)
    assert furthest(wanted[39:], second) < 5e-4


def test_the_trunk_is_the_same_with_and_without(headed: Headed, tiny: Callable[[str], Any]) -> None:
    plain, model = loaded(headed.folder), with_heads(headed.folder)
    assert plain.draft_cache_specs == ()
    expected = prefill_logits(plain, headed.tokens)
    assert prefill_logits(model, headed.tokens).tobytes() == expected.tobytes()
    assert model.kv_cache_specs == plain.kv_cache_specs


def test_a_checkpoint_that_lacks_a_part_has_no_heads(headed: Headed, tmp_path: Path) -> None:
    parameters = dict(headed.parameters)
    del parameters[f"{headed.names[1]}.weight"]
    model = with_heads(write_folder(tmp_path / "part", headed.config, parameters))
    assert model.draft_cache_specs == ()


def test_a_runner_keeps_hidden_states_and_gives_the_models_logits(headed: Headed) -> None:
    model = with_heads(headed.folder)
    runner = ModelRunner(model, num_blocks=3, num_states=2, cache_dtype="f32", draft_heads=True)
    rows = batch(headed.tokens, 0, 75, [3, 74])
    logits = runner.execute(rows)
    assert logits.tobytes() == prefill_logits(model, headed.tokens)[[3, 74]].tobytes()
    assert runner.hidden.tobytes() == hidden_of(model, headed.tokens).tobytes()


class Always:
    """Takes all that draft heads guess, up to four tokens."""

    max_drafts = 4

    def __init__(self, source: DraftHeads) -> None:
        self.source = source

    def propose(
        self, requests: Sequence[Request], limits: Sequence[int], rows: int
    ) -> Sequence[Sequence[int]]:
        return [d.token_ids for d in self.source.propose(requests, limits, lambda i, kinds: True)]

    def observe(self, step: StepResult) -> None:
        self.source.observe(step, wanted=True)

    def forget(self, request: Request) -> None:
        self.source.forget(request)


# Of each kind of cache and of state one: the others differ in names and routers.
@pytest.mark.parametrize(
    "headed",
    [*("deepseek_v3", "glm4_moe", "ernie4_5_moe", "deepseek_v32", "mimo_v2_flash"), RECURRENT[0]],
    indirect=True,
)
def test_answers_are_the_same_with_and_without(headed: Headed) -> None:
    """Bit for bit, in company, with prompts in pieces, blocks that run out and prefixes found."""
    model = with_heads(headed.folder)
    prompts = [headed.tokens[:n] for n in (3, 40, 64, 65, 50)]
    params = [
        SamplingParams(max_tokens=20, temperature=0, logprobs=2),
        SamplingParams(max_tokens=25, temperature=1, seed=1, logprobs=1),
        SamplingParams(max_tokens=30, temperature=0.7, seed=2, repetition_penalty=1.2),
    ]

    def answers(draft: bool) -> tuple[list[Any], Engine]:
        runner = ModelRunner(model, num_blocks=11, num_states=24, draft_heads=draft)
        drafter = Always(DraftHeads(runner, Sampler())) if draft else None
        engine = Engine(runner, max_batch_tokens=24, max_sequences=4, drafter=drafter)
        done = []
        for _ in range(2):
            requests = [engine.add(p, params[i % 3]) for i, p in enumerate(prompts)]
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


@pytest.mark.parametrize("name", ["deepseek_v3", "glm4_moe", *RECURRENT])
def test_ggufs_have_the_same_heads(name: str, tiny: Callable[[str], Any], tmp_path: Path) -> None:
    headed = Headed(name, tiny(name), tmp_path / "folder")
    layers = headed.config["num_hidden_layers"]
    parameters = {
        key.replace(f"{headed.block_name}.", f"model.layers.{layers}."): values
        for key, values in headed.parameters.items()
        if not any(part and key == f"{part}.weight" for part in headed.names)
    }
    parts = {
        f"blk.{layers}.nextn.{theirs}.weight": headed.extra[f"{ours}.weight"]
        for theirs, ours in zip(NEXTN, headed.names, strict=True)
    }
    path = tmp_path / "model.gguf"
    config = {**headed.config, "num_nextn_predict_layers": 1}
    if name != "glm4_moe":  # whose writer counts the layer itself
        config["num_hidden_layers"] = layers + 1
    write_gguf(path, config, {**parameters, **parts})
    model, folder = with_heads(path), with_heads(headed.folder)
    assert model.draft_cache_specs == folder.draft_cache_specs != ()
    tokens = headed.tokens
    hidden = hidden_of(folder, tokens)
    assert furthest(hidden, hidden_of(model, tokens)) < 1e-4
    step = batch(tokens[1:], 0, 74)
    made = [m.draft(hidden[:-1], step, caches(m.draft_cache_specs))[1] for m in (folder, model)]
    assert furthest(*made) < 1e-4

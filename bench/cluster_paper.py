"""What would a model in stages on several machines reach, on paper? Prints a table.

    dure plan qwen3:30b --save-machine here.json     # measures this machine
    python bench/cluster_paper.py here.json --times 8 --nodes 8 --memory 96 --gigabits 10

DeepSeek-V3 in Q4_K_M by default: its tensors follow from its config, and are cut as
`dure serve --ray` cuts them, for nodes that are `--times` the measured machine: so many times its
products and its memory's speed, with the same time a layer and a call. Nothing is measured here.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dure.cluster.split import Costs, Room, cut, need
from dure.formats.checkpoint import Checkpoint
from dure.models import header_model
from dure.planning.machine import AttentionSpeed, Machine, read_machine
from dure.planning.shapes import gguf_types, sketch
from dure.planning.speed import CHUNK, Speeds
from dure.planning.work import work_of
from dure.weights.span import Span

CONFIGS: dict[str, dict[str, Any]] = {}
"""Of each model the keys of its config.json that decide sizes."""

CONFIGS["deepseek-v3"] = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "vocab_size": 129280,
    "max_position_embeddings": 163840,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 3,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
CONFIGS["qwen3-235b"] = {
    "model_type": "qwen3_moe",
    "hidden_size": 4096,
    "num_hidden_layers": 94,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Network:
    """What is between two nodes."""

    bits_s: float = 10e9
    seconds: float = 0.0002  # of latency, and of what both ends do with a frame

    def crossing(self, size: float) -> float:
        """Seconds until so many bytes are at the next stage."""
        return self.seconds + 8 * size / self.bits_s


@dataclass(frozen=True)
class Cluster:
    """A model in stages on nodes that are alike."""

    checkpoint: Checkpoint
    machine: Machine
    nodes: int
    memory: int  # bytes of a node that may be taken
    network: Network
    tokens: int  # that the cache holds
    depth: int = 1024  # tokens that a stream has

    @cached_property
    def speeds(self) -> Speeds:
        return Speeds(work_of(self.checkpoint, self.checkpoint.path.name), self.machine)

    @cached_property
    def _model(self) -> tuple[Any, Costs]:
        model, weights = header_model(self.checkpoint)
        return model, Costs.of(model, weights, "f16")

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """Which layers lie on which node; as `dure serve --ray` cuts them."""
        _, costs = self._model
        rooms = [Room(self.memory, self.machine.read_bytes_s)] * self.nodes
        starts = cut(self.checkpoint.path.name, costs, rooms, tokens=self.tokens, sequences=0)
        return Span.cut(len(costs.layers), starts)

    @property
    def hidden_bytes(self) -> int:
        return 4 * int(self._model[0].hidden_size)

    def needs(self, span: Span) -> int:
        """Bytes of a stage, with its part of the cache."""
        return need(self._model[1].of_span(span), self.tokens, 0)

    def stage_seconds(self, rows: int) -> list[float]:
        """What each stage takes for a pass of so many rows of decoding streams."""
        step = self.speeds.decode_step(rows, self.depth)
        layers, costs = step.total - step.head, self._model[1]
        reads = [
            sum(each.read_bytes for each in costs.layers[s.first : s.last]) for s in self.spans
        ]
        found = [layers * read / sum(reads) for read in reads]
        return [*found[:-1], found[-1] + step.head]

    def round_seconds(self, streams: int) -> float:
        """How long it takes until each of so many streams has its next token.

        There are as many passes on their way as stages: a round ends when the slowest stage has
        had all of them, or one of them has gone all the way round.
        """
        passes = min(streams, self.nodes)
        rows = -(-streams // passes)
        each = self.stage_seconds(rows)
        around = sum(each) + self.nodes * self.network.crossing(rows * self.hidden_bytes)
        return max(passes * max(each), around)

    def prefill_tps(self) -> float:
        """Tokens a second of prompts in pieces, when all stages have one."""
        step = next(self.speeds.prefill_steps(CHUNK, self.depth))
        share = max(s.last - s.first for s in self.spans) / sum(
            s.last - s.first for s in self.spans
        )
        crossing = 8 * CHUNK * self.hidden_bytes / self.network.bits_s
        return float(CHUNK / max(step.total * share, crossing))


def scaled(machine: Machine, times: float) -> Machine:
    """A machine of so many times these cores and memory channels."""

    def faster(speed: AttentionSpeed) -> AttentionSpeed:
        narrow, wide = (tuple(ns / times for ns in each) for each in (speed.narrow, speed.wide))
        return replace(speed, narrow=narrow, wide=wide)

    few = machine.element_few_s
    return replace(
        machine,
        threads=round(machine.threads * times),
        read_bytes_s=machine.read_bytes_s * times,
        gops={name: tuple(g * times for g in each) for name, each in machine.gops.items()},
        attention={name: faster(each) for name, each in machine.attention.items()},
        element_s=machine.element_s / times,
        element_few_s=None if few is None else few / times,
        delta_ns=machine.delta_ns / times,
    )


def opened(name: str) -> Checkpoint:
    """The headers of a model in Q4_K_M."""
    config = CONFIGS[name]
    return sketch(
        name, config, gguf_types("Q4_K_M", layers=config["num_hidden_layers"], tied=False)
    )


def arguments(parser: argparse.ArgumentParser) -> None:
    """What both scripts take."""
    parser.add_argument("machine", type=Path, help="a file that `dure plan --save-machine` wrote")
    parser.add_argument("--model", default="deepseek-v3", choices=CONFIGS)
    parser.add_argument("--times", type=float, default=8.0, help="a node is so many of it")
    parser.add_argument("--memory", type=float, default=96.0, help="GB of a node")
    parser.add_argument("--gigabits", type=float, default=10.0)
    parser.add_argument("--latency", type=float, default=0.2, help="ms of a crossing")
    parser.add_argument("--cache-tokens", type=int, default=131072)


def cluster_of(options: argparse.Namespace, nodes: int) -> Cluster:
    """The cluster that the options describe; a tenth of each node's memory is left to others."""
    return Cluster(
        opened(options.model),
        scaled(read_machine(options.machine), options.times),
        nodes,
        round(0.9e9 * options.memory),
        Network(options.gigabits * 1e9, options.latency / 1000),
        options.cache_tokens,
    )


def table(cluster: Cluster, streams: Sequence[int]) -> str:
    """Placement and speeds as Markdown."""
    lines = [
        f"A node: {cluster.machine.threads} cores, {cluster.machine.read_bytes_s / 1e9:.0f} GB/s.",
        "",
        "| stage | layers | GB with its cache | ms for one row |",
        "|---|---|---|---|",
    ]
    one = cluster.stage_seconds(1)
    for number, (span, seconds) in enumerate(zip(cluster.spans, one, strict=True), 1):
        lines.append(
            f"| {number} | {span.first} to {span.last - 1} | {cluster.needs(span) / 1e9:.1f} | "
            f"{1000 * seconds:.1f} |"
        )
    lines += [
        "",
        f"Between two stages {cluster.hidden_bytes:,} bytes a token, "
        f"{(cluster.nodes - 1) * cluster.hidden_bytes:,} in all; "
        f"prompts {cluster.prefill_tps():.0f} tokens a second.",
        "",
        "| streams | tokens a second | of each stream | network, Mbit/s a link |",
        "|---|---|---|---|",
    ]
    for count in streams:
        rate = count / cluster.round_seconds(count)
        lines.append(
            f"| {count} | {rate:.1f} | {rate / count:.2f} | "
            f"{8 * rate * cluster.hidden_bytes / 1e6:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Compute and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments(parser)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 8, 32, 128])
    options = parser.parse_args()
    print(table(cluster_of(options, options.nodes), options.streams))


if __name__ == "__main__":
    main()

"""Which experts are rows sent to, and which of them should a cache keep?

    python bench/routings.py record MODEL.gguf OUT.npz [--sequences 8] [--tokens 1024] [TEXT …]
    python bench/routings.py describe OUT.npz
    python bench/routings.py caches OUT.npz [--share 0.25 0.5 …] [--work decode prompt+decode …]

`record` runs the model over texts (by default this repository's), and writes for each sequence,
token and layer the experts in falling order and the router's logits. A token's experts do not
depend on whether it came in a prompt or alone, so that any work can be made of a recording.
It also asks each router for its choice on the inputs of the MLPs before it, which is the guess that
reading ahead would make.

`describe` prints how often experts are used again, and how good those guesses are. `caches` prints
Markdown tables of the experts that each policy of cache_policies.py reads for a token and layer,
beside what the best possible one reads (Belady's, which knows the future).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from cache_policies import POLICIES, Belady, Request, replay

from dure import kernels
from dure.benchmark import DirectRunner
from dure.layers.moe import SparseMLP
from dure.loading.load import load

ROOT = Path(__file__).parent.parent
CHUNK = 512  # tokens in one forward pass
AHEAD = 2  # layers that routers are asked ahead
WARM = 128  # tokens of a sequence that are decoded before misses count
PROMPT, ANSWER = 512, 256  # tokens, of a mixed piece of work
WORK = ["decode", "decode x8", "prompt+decode", "prompt+decode x8", "turns"]


class Recording:
    """What routers chose: ids (sequences, tokens, layers, k), logits (…, experts), guesses.

    guesses: (sequences, tokens, layers, AHEAD, k): what a layer's router chooses given the input of
    the MLP one layer before it, two before, …; -1 where there is none.
    """

    def __init__(self, path: Path) -> None:
        with np.load(path) as file:
            self.ids: np.ndarray = file["ids"]
            self.logits: np.ndarray = file["logits"].astype(np.float32)
            self.guesses: np.ndarray = file["guesses"]
        self.sequences, self.tokens, self.layers, self.chosen = self.ids.shape
        self.experts = self.logits.shape[-1]


class Recorder:
    """Collects what the routers of one model choose while it runs."""

    def __init__(self, model: Any) -> None:
        self.mixtures = [layer.mlp for layer in model.layers if hasattr(layer.mlp, "experts")]
        self.index = {id(mixture): at for at, mixture in enumerate(self.mixtures)}
        self.ids: list[list[np.ndarray]] = [[] for _ in self.mixtures]
        self.logits: list[list[np.ndarray]] = [[] for _ in self.mixtures]
        self.guesses: list[list[list[np.ndarray]]] = [
            [[] for _ in range(AHEAD)] for _ in self.mixtures
        ]

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Wrap mixtures and kernels.route for as long as the context lasts."""
        call, route = SparseMLP.__call__, kernels.route

        def wrapped_call(mixture: Any, x: Any, **options: Any) -> Any:
            at = self.index[id(mixture)]
            asked = (mixture, *self.mixtures[at + 1 : at + 1 + AHEAD])
            for ahead, other in enumerate(asked):
                routing = other._routing
                logits = other.gate(x)
                ids, _ = route(
                    logits,
                    top_k=routing.top_k,
                    normalize=False,
                    score=routing.score,
                    bias=other.bias,
                    group_rule=routing.group_rule,
                    groups=routing.groups,
                    kept_groups=routing.kept_groups,
                )
                if ahead == 0:
                    self.ids[at].append(ids.astype(np.int16))
                    self.logits[at].append(logits.astype(np.float16))
                else:
                    self.guesses[at + ahead][ahead - 1].append(ids.astype(np.int16))
            return call(mixture, x, **options)

        SparseMLP.__call__ = wrapped_call  # type: ignore[method-assign]
        try:
            yield
        finally:
            SparseMLP.__call__ = call  # type: ignore[method-assign]

    def arrays(self, sequences: int) -> dict[str, np.ndarray]:
        """All that was recorded, by the names of Recording."""
        ids = np.stack([np.concatenate(parts) for parts in self.ids], axis=1)
        nothing = np.full(ids[:, 0].shape, -1, np.int16)
        guesses = np.stack(
            [
                np.stack([np.concatenate(parts) if parts else nothing for parts in layer], axis=1)
                for layer in self.guesses
            ],
            axis=1,
        )
        logits = np.stack([np.concatenate(parts) for parts in self.logits], axis=1)
        every = {"ids": ids, "logits": logits, "guesses": guesses}
        return {
            name: array.reshape(sequences, -1, *array.shape[1:]) for name, array in every.items()
        }


def record(options: argparse.Namespace) -> None:
    """Run the model over the texts, and write what its routers chose."""
    loaded = load(options.model, threads=options.threads, context=4096, cache_tokens=4096)
    names = options.texts or [*sorted((ROOT / "docs").glob("*.md")), *ROOT.glob("src/dure/*.py")]
    text = [loaded.tokenizer.encode(Path(name).read_text("utf-8")) for name in names]
    # Each sequence is a piece of one text; texts that are too short are left out.
    pieces = [list(tokens[: options.tokens]) for tokens in text if len(tokens) >= options.tokens]
    if len(pieces) < options.sequences:
        sys.exit(f"only {len(pieces)} of the texts have {options.tokens} tokens")
    run = DirectRunner(loaded.model, tokens=options.tokens)
    loaded.model.logits = lambda x: (
        x
    )  # the last block computes what is asked for; the head need not
    recorder = Recorder(loaded.model)
    begun = time.perf_counter()
    with recorder.recording():
        for piece in pieces[: options.sequences]:
            for start in range(0, len(piece), CHUNK):
                part = piece[start : start + CHUNK]
                run.forward(
                    part, range(start, start + len(part)), [0] * len(part), range(len(part))
                )
            print(f"{time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    np.savez_compressed(options.out, **recorder.arrays(options.sequences))


def describe(recording: Recording) -> Iterator[str]:
    """Lines about how experts repeat, and how good guesses are."""
    ids, experts = recording.ids, recording.experts
    chosen = np.zeros((*ids.shape[:3], experts), bool)
    np.put_along_axis(chosen, ids.astype(np.int64), True, axis=-1)
    yield f"{ids.shape[2]} layers, {ids.shape[3]} of {experts} experts, {ids.shape[:2]} tokens"
    for distance in (1, 2, 8, 64):
        again = (chosen[:, distance:] & chosen[:, :-distance]).sum(-1).mean() / recording.chosen
        yield f"chosen {distance} tokens before, too: {again:.1%}"
    last8 = np.mean(
        [
            (chosen[:, at] & chosen[:, at - 8 : at].any(1)).sum(-1).mean() / recording.chosen
            for at in range(8, recording.tokens)
        ]
    )
    yield f"chosen within the 8 tokens before: {last8:.1%}"
    counts = -np.sort(-chosen.sum((0, 1)), axis=-1) / chosen.sum((0, 1)).sum(-1, keepdims=True)
    half = counts[:, : experts // 2].sum(-1).mean()
    yield f"slots of the most used expert: {counts[:, 0].mean():.1%}, of the first half: {half:.1%}"
    for ahead in range(1, AHEAD + 1):
        guesses = recording.guesses[:, :, ahead:, ahead - 1].astype(np.int64)
        right = np.take_along_axis(chosen[:, :, ahead:], guesses, axis=-1)
        top = ", ".join(
            f"the first {k}: {right[..., :k].mean():.1%}" for k in (1, recording.chosen // 2)
        )
        yield f"named by the router {ahead} layers ahead: {right.mean():.1%} ({top})"
        fresh = ~chosen[:, :-1, ahead:] & chosen[:, 1:, ahead:]
        guessed = np.zeros_like(chosen[:, :, ahead:])
        np.put_along_axis(guessed, guesses, True, axis=-1)
        found = (fresh & guessed[:, 1:]).sum() / fresh.sum()
        yield f"  … of those that the token before did not choose: {found:.1%}"
    for share in (0.115, 0.23, 0.4, 0.5):
        size = round(share * experts * recording.layers)
        requests = list(decoding(recording, range(1)))
        missed = replay(POLICIES["LRU"], requests, size, recording.layers, experts)
        needed = sum(len(np.unique(r.ids)) for r in requests if r.counts)
        yield f"a cache of the last used {share:.1%} hits {1 - missed / needed:.1%}"


def decoding(
    recording: Recording,
    sequences: range,
    first: int = 0,
    last: int | None = None,
    warm: int = WARM,
) -> Iterator[Request]:
    """A step a token, with a row of each of the sequences."""
    which = slice(sequences.start, sequences.stop)
    for at in range(first, recording.tokens if last is None else last):
        for layer in range(recording.layers):
            ids, logits = recording.ids[which, at, layer], recording.logits[which, at, layer]
            yield Request(layer, ids, logits, counts=at >= first + warm)


def prompt(recording: Recording, sequence: int, length: int) -> Iterator[Request]:
    """The beginning of one sequence in one step."""
    for layer in range(recording.layers):
        ids, logits = recording.ids[sequence, :length, layer], recording.logits[sequence, :length]
        yield Request(layer, ids, logits[:, layer], counts=False, one_sequence=True)


def requests_of(work: str, recording: Recording) -> tuple[list[Request], int]:
    """The requests of a piece of work, and the tokens of those whose misses count."""
    every = range(recording.sequences)
    if work == "decode":
        requests = [r for s in every[:2] for r in decoding(recording, range(s, s + 1))]
        return requests, 2 * (recording.tokens - WARM)
    if work == "decode x8":
        last = WARM + ANSWER
        return list(decoding(recording, every, last=last)), recording.sequences * ANSWER
    answer = {"first": PROMPT, "last": PROMPT + ANSWER, "warm": 0}
    if work == "prompt+decode":
        requests = []
        for s in every[:4]:
            requests += prompt(recording, s, PROMPT)
            requests += decoding(recording, range(s, s + 1), **answer)
        return requests, 4 * ANSWER
    if work == "prompt+decode x8":
        requests = [r for s in every for r in prompt(recording, s, PROMPT)]
        requests += decoding(recording, every, **answer)
        return requests, recording.sequences * ANSWER
    # A conversation's turns: short prompts of another text between answers.
    requests = list(decoding(recording, range(1), last=WARM))
    for turn in range(4):
        part = {"first": WARM + turn * 128, "last": WARM + (turn + 1) * 128, "warm": 0}
        requests += prompt(recording, turn + 1, 64)
        requests += decoding(recording, range(1), **part)
    return requests, 4 * 128


def caches(options: argparse.Namespace, recording: Recording) -> Iterator[str]:
    """A table for each piece of work: experts read for a token and layer, by policy and share."""
    for work in options.work:
        requests, tokens = requests_of(work, recording)
        yield f"\n{work} ({recording.chosen} of {recording.experts} experts)\n"
        yield "| policy | " + " | ".join(f"{share:.0%}" for share in options.share) + " |"
        yield "|---|" + "---|" * len(options.share)
        sizes = [round(share * recording.experts * recording.layers) for share in options.share]
        for name, policy in {"Belady": Belady, **POLICIES}.items():
            if options.policy and name not in ("Belady", *options.policy):
                continue
            cells = [
                replay(policy, requests, size, recording.layers, recording.experts)
                / (tokens * recording.layers)
                for size in sizes
            ]
            yield f"| {name} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |"


def main() -> None:
    """Record, describe or simulate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    recording = verbs.add_parser("record", help="run a model and write what its routers choose")
    recording.add_argument("model")
    recording.add_argument("out", type=Path)
    recording.add_argument("texts", nargs="*", help="files; default: this repository's")
    recording.add_argument("--sequences", type=int, default=8)
    recording.add_argument("--tokens", type=int, default=1024)
    recording.add_argument("--threads", type=int)
    described = verbs.add_parser("describe", help="say how experts repeat")
    described.add_argument("recording", type=Path)
    cached = verbs.add_parser("caches", help="simulate caches")
    cached.add_argument("recording", type=Path)
    shares = [0.1, 0.25, 0.37, 0.5, 0.75, 0.95]
    cached.add_argument("--share", type=float, nargs="+", default=shares, help="of all experts")
    cached.add_argument("--work", nargs="+", choices=WORK, default=WORK)
    cached.add_argument("--policy", nargs="+", choices=POLICIES, help="default: all")
    options = parser.parse_args()
    if options.verb == "record":
        record(options)
        return
    read = Recording(options.recording)
    lines = describe(read) if options.verb == "describe" else caches(options, read)
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()

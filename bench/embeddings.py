"""Texts per second: dure against llama.cpp's `llama-server --embedding`, on the same file.

    python bench/embeddings.py MODEL.gguf --server /path/to/llama-server [--threads 2]

Both serve /v1/embeddings over HTTP, one after the other, and get the same requests of token ids:
`--texts` texts of `--tokens` tokens each, `--batch` a request, `--parallel` requests at once, new
ones in each round, after a warm one. The peer's threads wait for each other by spinning: measure on
a machine that does nothing else. MODEL may be any GGUF of a decoder; both take the last token.
Without a model of 1.5B, `--make` writes one of that shape with random weights first (Q8_0, 1.6 GB).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

SOURCE = Path(__file__).parent.parent / "src"


def main() -> None:
    """Measure both, and print texts and tokens per second, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--server", type=Path, help="llama-server; without it only dure is run")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--texts", type=int, default=96)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--make", action="store_true", help="write a model of random weights first")
    given = parser.parse_args()
    if given.make:
        make(given.model)
    commands = {"dure": ours(given)}
    if given.server is not None:
        commands["llama.cpp"] = theirs(given)
    found: dict[str, float] = {}
    for name, command in commands.items():
        with serving(command, given) as url:
            draw = random.Random(1)
            ask_all(url, drawn(draw, given), given)
            seconds = [ask_all(url, drawn(draw, given), given) for _ in range(given.rounds)]
        found[name] = given.texts / median(seconds)
        print(f"{name}: {found[name]:.2f} texts/s, {found[name] * given.tokens:.0f} tokens/s")
    if len(found) == 2:
        print(f"ratio: {found['dure'] / found['llama.cpp']:.2f}")


def drawn(draw: random.Random, given: argparse.Namespace) -> list[list[int]]:
    """Texts of a round: none comes twice, as a cache would know it."""
    return [[draw.randrange(1000, 20000) for _ in range(given.tokens)] for _ in range(given.texts)]


def ours(given: argparse.Namespace) -> list[str]:
    """The command that serves dure."""
    options = ["--port", str(PORT), "--threads", str(given.threads), "--context", "2048"]
    return [sys.executable, "-m", "dure", "serve", str(given.model), *options]


def theirs(given: argparse.Namespace) -> list[str]:
    """The command that serves llama.cpp, with the batches that suit it best."""
    size = max(2048, given.tokens * given.batch)
    return [
        str(given.server),
        *("-m", str(given.model), "--embedding", "--pooling", "last", "--port", str(PORT)),
        *("-t", str(given.threads), "-tb", str(given.threads), "-c", str(size * 2)),
        *("-b", "2048", "-ub", "2048", "--parallel", str(min(32, given.batch))),
        *("-fit", "off"),  # which builds without a GPU may not survive; there is nothing to fit
    ]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


PORT = _free_port()


@contextmanager
def serving(command: list[str], given: argparse.Namespace) -> Iterator[str]:
    """Run a server; yield its address once it answers."""
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    if given.server is not None:
        folders = given.server.parent, given.server.parent.parent / "lib"
        env["LD_LIBRARY_PATH"] = os.pathsep.join(map(str, folders))
    url = f"http://127.0.0.1:{PORT}"
    log = tempfile.TemporaryFile()  # noqa: SIM115 - until the end
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=log)
    try:
        for _ in range(3000):
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                    if answer.status == 200:
                        break
            except OSError:
                pass
            if process.poll() is not None:
                log.seek(0)
                said = log.read().decode(errors="replace")[-1000:]
                raise SystemExit(f"{command[0]} ended with {process.returncode}: {said}")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(60)
        log.close()


def ask_all(url: str, texts: list[list[int]], given: argparse.Namespace) -> float:
    """Embed all texts; return the seconds that it took."""
    batches = [texts[i : i + given.batch] for i in range(0, len(texts), given.batch)]
    began = time.perf_counter()
    with ThreadPoolExecutor(given.parallel) as pool:
        counts = list(pool.map(lambda batch: ask(url, batch), batches))
    if sum(counts) != len(texts):
        raise SystemExit(f"{sum(counts)} embeddings of {len(texts)} texts came back")
    return time.perf_counter() - began


def ask(url: str, batch: list[list[int]]) -> int:
    """Embed one request's texts; return how many embeddings came back."""
    body = json.dumps({"input": batch, "encoding_format": "float"}).encode()
    headers = {"Content-Type": "application/json"}
    asked = urllib.request.Request(f"{url}/v1/embeddings", body, headers)
    with urllib.request.urlopen(asked, timeout=600) as answer:
        read: dict[str, Any] = json.load(answer)
    return len(read["data"])


def make(path: Path) -> None:
    """Write a GGUF of Qwen2.5-1.5B's shape with random weights in Q8_0, and a small vocabulary."""
    import gguf  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    hidden, layers, heads, kv_heads, width, mlp, vocab = 1536, 28, 12, 2, 128, 8960, 32000
    writer = gguf.GGUFWriter(str(path), "qwen2")
    writer.add_context_length(8192)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(mlp)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_uint32("qwen2.pooling_type", 3)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    letters = [chr(0x100 + i) for i in range(256)]
    writer.add_token_list([*letters, *(f"<{i}>" for i in range(256, vocab))])
    writer.add_token_types([1] * 256 + [3] * (vocab - 256))
    writer.add_token_merges([])
    writer.add_eos_token_id(vocab - 1)
    draw = np.random.default_rng(1)

    def matrix(name: str, rows: int, cols: int) -> None:
        scales = np.full((rows, cols // 32, 1), 0.0004, np.float16).view(np.uint8)
        codes = draw.integers(-127, 128, (rows, cols // 32, 32), np.int8).view(np.uint8)
        blocks = np.concatenate([scales, codes], axis=2).reshape(rows, -1)
        writer.add_tensor(name, blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)

    def ones(name: str, size: int, value: float = 1.0) -> None:
        writer.add_tensor(name, np.full(size, value, np.float32))

    matrix("token_embd.weight", vocab, hidden)
    ones("output_norm.weight", hidden)
    for layer in range(layers):
        at = f"blk.{layer}."
        for norm in ("attn_norm", "ffn_norm"):
            ones(f"{at}{norm}.weight", hidden)
        for part, rows in (("q", heads * width), ("k", kv_heads * width), ("v", kv_heads * width)):
            matrix(f"{at}attn_{part}.weight", rows, hidden)
            ones(f"{at}attn_{part}.bias", rows, 0.0)
        matrix(f"{at}attn_output.weight", hidden, heads * width)
        for part in ("gate", "up"):
            matrix(f"{at}ffn_{part}.weight", mlp, hidden)
        matrix(f"{at}ffn_down.weight", hidden, mlp)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()

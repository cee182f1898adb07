"""How long does loading a model take, and how much memory at its peak, against the file's size?

Prints one JSON object. `peak_bytes` is the highest resident size of this process (VmHWM), after
loading and again after one prefill; `cache_bytes` of it is what the cache of that prompt takes.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from dure.batch import BLOCK_SIZE
from dure.benchmark import DirectRunner
from dure.engine.block_pool import blocks_for
from dure.loading.load import load


def peak_bytes() -> int:
    """The highest resident size that this process has had, from Linux's /proc."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("/proc/self/status has no VmHWM: this needs Linux")


def main() -> None:
    """Load, prefill once, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", help="a GGUF file, a folder, or a name")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--prompt", type=int, default=512, help="tokens to prefill")
    options = parser.parse_args()
    before = peak_bytes()
    start = time.perf_counter()
    loaded = load(
        options.model,
        threads=options.threads,
        context=options.prompt,
        cache_tokens=options.prompt,
    )
    load_s = time.perf_counter() - start
    after_load = peak_bytes()
    DirectRunner(loaded.model, tokens=options.prompt).fill([100] * options.prompt)
    file_bytes = sum(tensor.size_bytes for tensor in loaded.checkpoint.tensors.values())
    token_bytes = sum(layer.bytes_per_token("f16") for layer in loaded.model.kv_cache_specs)
    cache_bytes = blocks_for(options.prompt) * BLOCK_SIZE * token_bytes
    peak = peak_bytes()
    figures = {
        "model": loaded.name,
        "weights_in_file_bytes": file_bytes,
        "load_s": round(load_s, 3),
        "peak_before_bytes": before,
        "peak_after_load_bytes": after_load,
        "peak_bytes": peak,
        "cache_bytes": cache_bytes,
        "peak_without_cache_over_file": round((peak - cache_bytes) / file_bytes, 3),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

"""What `dure convert` writes, held to llama.cpp: `python tests/llama_cpp_grid.py --python PYTHON`.

PYTHON is of an environment with llama-cpp-python or xllamacpp, which bring a llama.cpp each; dure
need not be there. Each tiny model of tests/convert is converted, and its log-probabilities after
the first 7, 23 and 40 tokens are llama.cpp's. It prints a line a model, and which llama.cpp it was.
Words run the models whose names have one of them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

LENGTHS = (7, 23, 40)
SECONDS = 600  # for llama.cpp and one tiny model, on a machine that is busy


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare each model; 1 if one differs, or llama.cpp does not load it."""
    import transformers  # noqa: PLC0415

    sys.path.insert(0, str(Path(__file__).parent / "convert"))
    from test_convert_gguf import CONVERTED  # noqa: PLC0415

    parser = argparse.ArgumentParser(description="Hold converted models to llama.cpp.")
    parser.add_argument("words", nargs="*", help="run those whose names have one of these")
    parser.add_argument("--python", required=True, help="an interpreter with llama.cpp")
    asked = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    words = asked.words
    names = [name for name in CONVERTED if not words or any(word in name for word in words)]
    failed, peer = 0, ""
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            try:
                distance, limit, peer = _compare(name, Path(folder), asked.python)
                good = distance <= limit
                said = f"{distance:.1e} (limit {limit:.0e})"
            except Exception as error:  # all are told
                good, said = False, f"{type(error).__name__}: {error}"
        failed += not good
        print(f"{'ok' if good else 'FAILED':6} {name:28} {said}", flush=True)
    print(f"{len(names)} models, {failed} failed; {peer}")
    return 1 if failed else 0


def _compare(name: str, folder: Path, python: str) -> tuple[float, float, str]:
    """Return how far the log-probabilities are, how far they may be, and the peer's name."""
    import numpy as np  # noqa: PLC0415
    from hub_folders import AS_IN_LLAMA_CPP, TOKENS, WIDE, write_tokenizer  # noqa: PLC0415
    from test_convert_gguf import WIDER  # noqa: PLC0415
    from tiny_models import loaded, oracle, prefill_logits, saved  # noqa: PLC0415

    from dure.convert.gguf import convert  # noqa: PLC0415

    changes = AS_IN_LLAMA_CPP.get(name, {}) | WIDE | WIDER.get(name, {})
    source, out = saved(name, oracle(name, **changes), folder / "model"), folder / "out.gguf"
    write_tokenizer(source)
    convert(source, out)
    logits = prefill_logits(loaded(out), TOKENS).astype(np.float64)
    ours = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    said = subprocess.run(
        [python, __file__, "--peer", str(out), json.dumps(TOKENS), str(logits.shape[1])],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if said.returncode:
        wrong = [line for line in said.stderr.splitlines() if "rror" in line] or ["no word"]
        raise RuntimeError(f"llama.cpp ended with {said.returncode}: {wrong[-1][:200]}")
    found = json.loads(said.stdout.splitlines()[-1])
    theirs = np.array(found["rows"])
    distance = float(np.abs(ours[[length - 1 for length in LENGTHS]] - theirs).max())
    # ggml looks GELU up in a table of float16.
    share = 5e-3 if "gemma" in name else 1e-4
    return distance, share * float(np.abs(logits).max()), found["name"]


def _peer(path: str, tokens: list[int], vocabulary: int) -> dict[str, object]:
    """Compute log-probabilities with whichever llama.cpp this interpreter has."""
    try:
        import llama_cpp  # noqa: PLC0415
    except ImportError:
        return _by_xllamacpp(path, tokens, vocabulary)
    import numpy as np  # noqa: PLC0415

    floats = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    model = llama_cpp.Llama(path, logits_all=True, n_ctx=64, verbose=False, **floats)
    model.eval(tokens)
    logits = np.array(model.scores[: len(tokens)], np.float64)
    rows = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    wanted = [rows[length - 1].tolist() for length in LENGTHS]
    return {"name": f"llama-cpp-python {llama_cpp.__version__}", "rows": wanted}


def _by_xllamacpp(path: str, tokens: list[int], vocabulary: int) -> dict[str, object]:
    """The same with xllamacpp, whose server tells the log-probabilities of a next token."""
    from importlib.metadata import version  # noqa: PLC0415

    import xllamacpp  # noqa: PLC0415

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel, params.n_gpu_layers = 64, 1, 0
    params.warmup = params.fit_params = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    off = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.flash_attn_type = off
    server = xllamacpp.Server(params)
    rows = []
    for length in LENGTHS:
        # Half a character would be held back, with its probabilities: "he" is drawn instead, which
        # the bias does to the draw alone.
        bias = [[vocabulary - 2, 1000.0]]
        body = {"prompt": tokens[:length], "n_predict": 1, "n_probs": vocabulary}
        answer = server.handle_completions({**body, "logit_bias": bias, "cache_prompt": False})
        found = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        row = [float("nan")] * vocabulary
        for each in found:
            row[each["id"]] = each["logprob"]
        rows.append(row)
    return {"name": f"xllamacpp {version('xllamacpp')}", "rows": rows}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peer"]:
        print("\n" + json.dumps(_peer(sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4]))))
        raise SystemExit(0)
    raise SystemExit(main())

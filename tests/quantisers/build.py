"""Build tiny checkpoints with the real quantisers: build.py OUT [TOOL…].

Each tool gets a virtual environment of its own under OUT/venv-TOOL, with the versions below; what
this interpreter has already (torch, transformers) is shared with it where the versions fit. Its
script here writes OUT/TOOL-FORMAT folders with an oracle beside the model:
oracle/weights.safetensors (the tool's own dequantised values, float32) and, for most,
oracle/logits.safetensors (transformers with these).
A tool that cannot be installed or run is said and passed over; the exit status is then 1.

All of them take some gigabytes and, on two cores, most of an hour: `.ci/quantisers` builds a few.
`pytest tests/quantisers/check_quantisers.py` with DURE_QUANTISERS=OUT then compares dure.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tarfile
import time
import venv
from pathlib import Path

HERE = Path(__file__).parent
TORCH = "torch==2.13.0"
LLAMA_CPP = "llama-cpp-python==0.3.36"
# tool -> (script, packages)
TOOLS: dict[str, tuple[str, list[str]]] = {
    "mlx": ("mlx_folders.py", [TORCH, "mlx[cpu]==0.32.4", "mlx-lm==0.32.2"]),
    "gguf": ("gguf_folders.py", [TORCH, "gguf==0.19.0", "safetensors"]),
    "transformers": (
        "saves.py",
        [TORCH, "transformers==5.24.0", "accelerate", "bitsandbytes==0.50.2", "torchao==0.18.0"],
    ),
    "quark": (
        "quark_folders.py",
        [TORCH, "transformers==5.24.0", "accelerate", "amd-quark==0.13"],
    ),
    "llmcompressor": ("llmc.py", [TORCH, "llmcompressor==0.14.0.1", "compressed-tensors==0.19.0"]),
    "autoround": ("autoround.py", [TORCH, "auto-round==0.16.1", "gptqmodel==7.6.0"]),
    "gptqmodel": ("gptqmodel_folders.py", [TORCH, "gptqmodel==7.6.0"]),
    "modelopt": (
        "modelopt_folders.py",
        [TORCH, "nvidia-modelopt==0.47.0", "transformers==5.24.0", "accelerate", "requests"],
    ),
    "msmodelslim": (
        "msmodelslim_folders.py",
        [TORCH, "msmodelslim==26.1.0", "transformers==4.57.6", "datasets", "pyyaml"],
    ),
    "mindspore": ("mindspore_folders.py", ["mindspore==2.10.0", "numpy<2", "safetensors"]),
    "paddle": ("paddle_folders.py", ["paddleformers==1.2.0", "paddlepaddle==3.3.1"]),
}


def python_of(out: Path, tool: str, packages: list[str]) -> Path:
    """Return the interpreter of a tool's environment, which is made if it is not whole."""
    home = out / f"venv-{tool}"
    python, whole = home / "bin" / "python", home / "whole"
    if not whole.exists():
        venv.create(home, with_pip=True, clear=True)
        [site] = home.glob("lib/python*/site-packages")
        (site / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
        call([python, "-m", "pip", "install", "-q", *packages])
        whole.touch()
    return python


def call(command: list[Path | str], folder: Path | None = None) -> str:
    """Run a command and return what it says; RuntimeError, with its last words, if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def run(python: Path, script: str, *arguments: Path | str) -> str:
    """Run one of these scripts and return what it says; what it could not do is printed."""
    said = call([python, HERE / script, *arguments])
    for line in said.splitlines():
        if "FAILED" in line or "NO ORACLE" in line:
            print("  ", line, flush=True)
    return said


def ggml(out: Path, python: Path) -> Path:
    """Return a shared library of ggml's quantisers, compiled from llama-cpp-python's sources."""
    made = out / "ggml" / "libggml-quants.so"
    if made.exists():
        return made
    made.parent.mkdir(exist_ok=True)
    fetch = [python, "-m", "pip", "download", "-q", "--no-deps", "--no-build-isolation"]
    call([*fetch, "--no-binary", ":all:", "-d", made.parent, LLAMA_CPP])
    [archive] = made.parent.glob("llama_cpp_python-*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(made.parent, filter="data")
    [source] = made.parent.glob("llama_cpp_python-*/vendor/llama.cpp/ggml")
    version = made.with_name("ggml-version.h")
    version.write_text('#define GGML_VERSION "0"\n#define GGML_COMMIT "0"\n')
    build: list[Path | str] = ["cc", "-shared", "-fPIC", "-O2", "-w", f"-I{version.parent}"]
    build += [f"-I{source / 'include'}", f"-I{source / 'src'}"]
    build += [source / "src" / "ggml.c", source / "src" / "ggml-quants.c"]
    call([*build, "-o", made, "-lm"])
    # The loader wants every function, also those of back ends and of locks, which do nothing here.
    missing = re.findall(r"\bU (ggml_\w+)", call(["nm", "-D", made]))
    stubs = made.with_name("stubs.c")
    stubs.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in missing))
    call([*build, stubs, "-o", made, "-lm"])
    return made


def build(out: Path, tool: str) -> None:
    """Build all folders of one tool."""
    script, packages = TOOLS[tool]
    python = python_of(out, tool, packages)
    before = [ggml(out, python)] if tool == "gguf" else []
    bases = [] if tool == "paddle" else [out / "base"]
    said = run(python, script, *before, *bases, out)
    pairs = [x.split()[1:] for x in said.splitlines() if x.startswith("DEQUANTISED")]
    if pairs:
        run(Path(sys.executable), "finish.py", *[part for pair in pairs for part in pair])


def main(out: Path, tools: list[str]) -> int:
    """Build what can be built and return the exit status."""
    unknown = [tool for tool in tools if tool not in TOOLS]
    if unknown:
        print(f"{', '.join(unknown)}: no such tool; there are {', '.join(TOOLS)}")
        return 2
    out.mkdir(parents=True, exist_ok=True)
    run(Path(sys.executable), "base.py", out / "base")
    failed = []
    for tool in tools or TOOLS:
        began = time.monotonic()
        try:
            build(out, tool)
        except (RuntimeError, OSError, ValueError) as error:
            print(f"{tool}: could not be built: {error}", flush=True)
            failed.append(tool)
            continue
        count = len(list(out.glob(f"{tool}-*/oracle/weights.safetensors")))
        print(f"{tool}: {count} folders in {time.monotonic() - began:.0f} s", flush=True)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2:]))

"""Build tiny checkpoints with the real quantisers: build.py OUT [TOOL…].

Each tool gets a virtual environment of its own under OUT/venv-TOOL, with the versions below. Its
script here writes OUT/TOOL-FORMAT folders with an oracle beside the model:
oracle/weights.safetensors (the tool's own dequantised values, float32) and
oracle/logits.safetensors (transformers with these).
A tool that cannot be installed or run is said and passed over; the exit status is then 1.

This takes some gigabytes and, on two cores, most of an hour: it is run by name, never by default.
`pytest tests/quantisers/check_quantisers.py` with DURE_QUANTISERS=OUT then compares dure.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
TORCH = "torch==2.13.0"
# tool -> (script, packages)
TOOLS: dict[str, tuple[str, list[str]]] = {
    "llmcompressor": ("llmc.py", [TORCH, "llmcompressor==0.14.0.1", "compressed-tensors==0.19.0"]),
    "mlx": ("mlx_folders.py", [TORCH, "mlx[cpu]==0.32.4", "mlx-lm==0.32.2"]),
    "autoround": ("autoround.py", [TORCH, "auto-round==0.16.1", "gptqmodel==7.6.0"]),
    "gptqmodel": ("gptqmodel_folders.py", [TORCH, "gptqmodel==7.6.0"]),
    "transformers": (
        "saves.py",
        [TORCH, "transformers==5.24.0", "accelerate", "bitsandbytes==0.50.2", "torchao==0.18.0"],
    ),
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
    """Return the interpreter of a tool's environment, which is made if it is not there."""
    home = out / f"venv-{tool}"
    python = home / "bin" / "python"
    if not python.exists():
        venv.create(home, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    return python


def run(python: Path, script: str, *arguments: Path | str) -> str:
    """Run one of these scripts and return what it says."""
    done = subprocess.run(
        [python, HERE / script, *arguments], capture_output=True, text=True, check=False
    )
    print(
        "".join(f"  {x}\n" for x in done.stdout.splitlines() if "FAILED" in x or "NO ORACLE" in x)
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return done.stdout


def build(out: Path, tool: str) -> None:
    """Build all folders of one tool."""
    script, packages = TOOLS[tool]
    python = python_of(out, tool, packages)
    bases = [] if tool == "paddle" else [out / "base"]
    said = run(python, script, *bases, out)
    pairs = [x.split()[1:] for x in said.splitlines() if x.startswith("DEQUANTISED")]
    if pairs:
        run(Path(sys.executable), "finish.py", *[part for pair in pairs for part in pair])


def main(out: Path, tools: list[str]) -> int:
    """Build what can be built and return the exit status."""
    out.mkdir(parents=True, exist_ok=True)
    run(Path(sys.executable), "base.py", out / "base")
    failed = []
    for tool in tools or TOOLS:
        try:
            build(out, tool)
            print(f"{tool}: built", flush=True)
        except (subprocess.CalledProcessError, RuntimeError, OSError) as error:
            print(f"{tool}: could not be built: {error}", flush=True)
            failed.append(tool)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2:]))

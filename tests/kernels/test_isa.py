"""Every instruction set gives the same bits, and one that is not there is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dure import kernels

HERE = Path(__file__).parent
NAMES = ("amx", "avx512", "avxvnni", "avx2", "i8mm", "dotprod", "neon", "portable")


def run(isa: str, code: list[str]) -> subprocess.CompletedProcess[str]:
    """A python process that DURE_ISA tells which instruction set to use."""
    path = os.pathsep.join([os.environ["PYTHONPATH"], str(HERE)])
    environment = {**os.environ, "DURE_ISA": isa, "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *code], check=False, capture_output=True, text=True, env=environment
    )


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """What plain C++ computes."""
    return outputs_of("portable", tmp_path_factory.mktemp("portable"))


def outputs_of(isa: str, folder: Path) -> dict[str, np.ndarray]:
    """The outputs of every kernel on one instruction set."""
    done = run(isa, [str(HERE / "isa_outputs.py"), str(folder / "outputs.npz")])
    assert done.returncode == 0, done.stderr
    with np.load(folder / "outputs.npz") as saved:
        return dict(saved)


@pytest.mark.parametrize("isa", [name for name in NAMES if name != "portable"])
def test_every_kernel_gives_the_bits_of_plain_code(
    isa: str, portable: dict[str, np.ndarray], tmp_path: Path
) -> None:
    if isa not in kernels.available_isas():
        pytest.skip(f"this machine has no {isa}, only {', '.join(kernels.available_isas())}")
    actual = outputs_of(isa, tmp_path)
    assert (str(portable["isa"]), str(actual["isa"])) == ("portable", isa)
    assert actual.keys() == portable.keys()
    different = [name for name in actual if not same_bits(portable[name], actual[name])]
    assert different == ["isa"]


def same_bits(expected: np.ndarray, actual: np.ndarray) -> bool:
    """Whether two arrays are equal in every bit; which NaN a NaN is does not count."""
    if expected.dtype != np.float32:
        return np.array_equal(expected, actual)
    same = expected.view(np.uint32) == actual.view(np.uint32)
    return bool((same | (np.isnan(expected) & np.isnan(actual))).all())


def test_the_best_instruction_set_is_used_unless_another_is_named() -> None:
    available = kernels.available_isas()
    assert available == tuple(name for name in NAMES if name in available)
    assert "portable" in available
    code = ["-c", "from dure import kernels; print(kernels.isa())"]
    assert run("", code).stdout.strip() == available[0]
    for isa in available:
        assert run(isa, code).stdout.strip() == isa


@pytest.mark.parametrize(
    "isa", ["avx3", "PORTABLE", *sorted(set(NAMES).difference(kernels.available_isas()))]
)
def test_an_instruction_set_that_is_not_there_is_an_error_with_its_name(isa: str) -> None:
    done = run(isa, ["-c", "from dure import kernels; kernels.isa()"])
    assert done.returncode == 1
    assert isa in done.stderr
    assert "Error" in done.stderr

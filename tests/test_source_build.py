"""What a build from source lacks is said in a sentence, and not in pages of a compiler's errors."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("c++") is None, reason="needs cmake and c++"
)

WITHOUT_OPENMP = '[[ " $* " != *" -fopenmp "* ]] || exit 1'
WITHOUT_CXX20 = '[[ ! " $* " =~ " -std="[a-z+]*(20|2a)" " ]] || exit 1'


def configured(folder: Path, compiler: Path) -> str:
    """What cmake says of this compiler, on one line."""
    command = ["cmake", "-S", str(ROOT), "-B", str(folder / "build")]
    environment = {**os.environ, "CXX": str(compiler)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    return " ".join(done.stderr.split())


def compiler(folder: Path, refuses: str) -> Path:
    """A c++ that fails where the line of bash `refuses` does."""
    path = folder / "fake-c++"
    path.write_text(f'#!/usr/bin/env bash\n{refuses}\nexec c++ "$@"\n')
    path.chmod(0o755)
    return path


@pytest.mark.long  # seconds, and cmake, which the checks before the long tests bring
def test_no_compiler_is_said(tmp_path: Path) -> None:
    said = configured(tmp_path, tmp_path / "none")
    assert "no C++ compiler was found that works: install one (apt-get install g++" in said


@pytest.mark.long
def test_a_compiler_without_openmp_is_said(tmp_path: Path) -> None:
    path = compiler(tmp_path, WITHOUT_OPENMP)
    said = configured(tmp_path, path)
    assert f"{path} has no OpenMP" in said
    assert "install it (apt-get install g++ has it" in said


@pytest.mark.long
def test_a_compiler_without_cxx20_is_said(tmp_path: Path) -> None:
    said = configured(tmp_path, compiler(tmp_path, WITHOUT_CXX20))
    assert "does not compile C++20, which dure is written in: install GCC 11" in said

"""What the README tells people to type works from a clone of the repository."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def lines() -> str:
    """The README's lines of Python."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


def run(script: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False, cwd=folder
    )


def clone(folder: Path) -> Path:
    """The repository as a clone has it: the sources, and no extension beside them."""
    no_extension = shutil.ignore_patterns("_core*", "__pycache__", ".git", "build", ".venv")
    shutil.copytree(ROOT / "src", folder / "src", ignore=no_extension)
    shutil.copy(ROOT / "README.md", folder)
    return folder


def test_the_names_of_the_readme_are_imported_in_a_clone(tmp_path: Path) -> None:
    imports = [line for line in lines().splitlines() if re.match(r"(from|import) ", line)]
    assert imports
    script = clone(tmp_path) / "readme.py"  # Python puts the script's folder first on its path
    script.write_text("\n".join([*imports, "import dure", "print(dure.__file__)"]))
    done = run(script, tmp_path)
    assert done.returncode == 0, done.stderr
    assert not Path(done.stdout.strip()).is_relative_to(tmp_path)


@pytest.mark.model
def test_the_lines_of_the_readme_run_in_a_clone(tmp_path: Path, smollm2: Path) -> None:
    script = clone(tmp_path) / "readme.py"
    text = lines()
    assert '"smollm2:135m"' in text
    script.write_text(text.replace('"smollm2:135m"', repr(str(smollm2))), encoding="utf-8")
    done = run(script, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout) > 20

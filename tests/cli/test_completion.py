"""dure completion, ls and version."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

import dure
from dure.cli import VERBS


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_knows_all_verbs_options_and_names(dure_command, shell: str) -> None:
    done = dure_command("completion", shell)
    assert done.code == 0
    for verb in VERBS:
        assert verb in done.out
    assert "qwen3:0.6b" in done.out
    assert ("-l models-dir" if shell == "fish" else "--models-dir") in done.out
    if shutil.which(shell):
        syntax = subprocess.run([shell, "-n"], input=done.out, text=True, check=False)
        assert syntax.returncode == 0


def test_bash_completes_verbs_options_and_names(dure_command) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    script = dure_command("completion", "bash").out
    asked = (("dure", "per"), ("dure", "run", "--max"), ("dure", "pull", "smollm2"))
    for words in asked:
        script += f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _dure\n"
        script += 'echo "${COMPREPLY[@]}"\n'
    done = subprocess.run(
        [bash, "--norc"], input=script, text=True, capture_output=True, check=True
    )
    assert done.stdout.splitlines() == [
        "perplexity",
        "--max-tokens",
        "smollm2:135m smollm2:360m smollm2:1.7b",
    ]


def test_ls_is_list(dure_command) -> None:
    assert dure_command("ls", "--all", "--json").out == dure_command("list", "--all", "--json").out


def test_version_says_what_it_runs_on(dure_command) -> None:
    assert dure_command("version").out == f"dure {dure.__version__}\n"
    told = json.loads(dure_command("version", "--json").out)
    assert told["version"] == dure.__version__
    assert told["isa"] == dure.kernels.isa()

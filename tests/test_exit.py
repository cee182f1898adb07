"""How a program that uses dure ends: no model is left, and nothing aborts, whatever still runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PREPARE = """
import gc, sys, threading
from dure import LLM, SamplingParams
from dure.kernels import _core
llm = LLM(sys.argv[1], threads=2)
short = SamplingParams(max_tokens=5, temperature=0)
endless = SamplingParams(max_tokens=500, ignore_eos=True)
"""

DAEMON = """
begun = threading.Event()
def talk():
    for _ in llm.stream("hi", endless):
        begun.set()
for _ in range(2):
    threading.Thread(target=talk, daemon=True).start()
begun.wait()
"""

ENDINGS = {
    "an answer": "llm.generate('hi', short)",
    "a stream left open": "stream = llm.stream('hi', short); next(stream)",
    "sys.exit within a stream": "next(llm.stream('hi', short)); sys.exit(0)",
    "a cycle": "keep = [llm]; keep.append(keep)",
    "a model dropped": "llm.generate('hi', short); del llm; gc.collect()",
}


def ended(script: str, model: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PREPARE + script, str(model)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )


pytestmark = pytest.mark.model


@pytest.mark.parametrize("ending", ENDINGS)
def test_nothing_of_a_model_is_left_when_python_ends(ending: str, smollm2: Path) -> None:
    done = ended("_core.set_leak_warnings(True)\n" + ENDINGS[ending], smollm2)
    assert (done.returncode, done.stderr) == (0, "")


LOADING = """
begun = threading.Event()
def load():
    begun.set()
    while True:
        LLM(sys.argv[1], threads=2)
for _ in range(2):
    threading.Thread(target=load, daemon=True).start()
begun.wait()
import time
time.sleep(0.05)
"""


def test_daemon_threads_in_the_middle_of_answers_end_with_the_program(smollm2: Path) -> None:
    for script in (DAEMON, LOADING):  # an abort came nearly each time
        done = ended(script, smollm2)
        # Python itself may say that a thread which still loads cannot start others any more.
        assert done.returncode == 0
        assert "terminate" not in done.stderr
        assert "leaked" not in done.stderr

"""Whatever /openapi.json lets a client send, or forbids it to: an answer, or an error of ours."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_model import END, ScriptModel

CHECKS = Path(__file__).parents[1] / "openapi_checks.py"


class Terse(ScriptModel):
    """Ends its answers at once if it may, and takes no time to think."""

    def forward(self, batch, cache):
        logits = np.zeros((len(batch.logit_rows), self.vocab_size), np.float32)
        logits[:, END] = 30.0
        return logits


@pytest.mark.long  # single requests of these kinds: test_errors.py, test_fields.py
@pytest.mark.parametrize(
    ("options", "least"),
    [
        (("--phases=fuzzing", "--max-examples=10"), 250),
        # Every keyword of every shape, kept to and broken; once, not with and without /v1.
        (("--phases=coverage", "--exclude-path-regex=^/v1/"), 4000),
    ],
    ids=["some", "each keyword"],
)
def test_every_operation_answers_valid_and_invalid_requests(
    serve, tmp_path, options, least
) -> None:
    server = serve(Terse())
    command = [sys.executable, "-m", "schemathesis.cli", "run", "--no-color"]
    same = [
        "--checks=errors_are_ours,nothing_hangs",
        "--generation-deterministic",
        "--request-timeout=60",
        "--continue-on-failure",
        "--warnings=off",
    ]
    done = subprocess.run(
        [*command, *same, *options, f"http://127.0.0.1:{server.port}/openapi.json"],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "SCHEMATHESIS_HOOKS": str(CHECKS), "PYTHONWARNINGS": "ignore"},
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    generated = re.search(r"([\d,]+) generated", done.stdout)
    assert generated is not None, done.stdout
    assert int(generated[1].replace(",", "")) >= least
    assert 200 == server.chat("hi").status

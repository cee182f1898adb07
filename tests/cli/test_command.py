"""The command as a whole: its weight, its exit codes, and where it writes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from outcome import ENVIRONMENT, Dure

import dure
from dure.cli import VERBS
from dure.errors import InvalidRequestError

FAKE = Path(__file__).with_name("fake_llm.py")
HEAVY = ("numpy", "rich", "prompt_toolkit", "tokenizers", "jinja2", "psutil", "huggingface_hub")


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
    )


@pytest.mark.parametrize(
    "code",
    [
        "import dure",
        "import dure.cli",
        "import dure.cli\ntry: dure.cli.main(['--help'])\nexcept SystemExit: pass",
        "import dure.cli\ntry: dure.cli.main(['--version'])\nexcept SystemExit: pass",
        "import dure; dure.SamplingParams",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code: str) -> None:
    done = python(f"{code}\nimport sys; print([m for m in {HEAVY!r} if m in sys.modules])")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_of_no_verb_loads_numpy_or_kernels() -> None:
    code = (
        "import sys, dure.cli\n"
        f"for verb in {list(VERBS)}:\n"
        "    try: dure.cli.main([verb, '--help'])\n"
        "    except SystemExit as exit_: assert exit_.code == 0\n"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    done = python(code)
    # typer takes rich along for the help of a verb, whatever we ask of it.
    assert done.stdout.splitlines()[-1] in ("[]", "['rich']")


def test_help_has_a_line_a_verb(dure_command: Dure) -> None:
    said = dure_command("--help").out
    for verb, summary in VERBS.items():
        assert re.search(rf"^  {verb} +{re.escape(summary)}$", said, re.MULTILINE)


def test_the_public_names_are_there(dure_command: Dure) -> None:
    for name in dure.__all__:
        assert getattr(dure, name) is not None
    assert set(dure.__all__) <= set(dir(dure))
    with pytest.raises(AttributeError, match="no attribute 'LLMs'"):
        _ = dure.LLMs


def test_the_version_is_that_of_the_package(dure_command: Dure) -> None:
    project = Path(__file__).parent.parent.parent / "pyproject.toml"
    stated = re.search(r'^version = "(.+)"$', project.read_text(), re.MULTILINE)
    assert stated is not None
    assert dure_command("--version").out == f"dure {stated[1]}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rnu"], "Did you mean 'run'?"),
        (["run", "--temprature", "1"], "--temperature"),
        (["bench"], "MODEL"),
        (["bench", "m", "--repeat", "0"], "--repeat"),
        (["perplexity", "m"], "TEXT"),
    ],
)
def test_wrong_usage_exits_with_2_and_a_suggestion(
    dure_command: Dure, arguments: list[str], said: str
) -> None:
    done = dure_command(*arguments)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


def test_an_error_of_the_system_is_one_sentence(dure_command: Dure, tmp_path: Path) -> None:
    done = dure_command("perplexity", "m", str(tmp_path / "none.txt"))
    assert (done.code, done.out) == (1, "")
    assert (
        done.err == f"error: {tmp_path / 'none.txt'} cannot be read: No such file or directory.\n"
    )


def test_a_measurement_of_nothing_is_refused(dure_command: Dure) -> None:
    done = dure_command("bench", "m", "--prompt", "0", "--decode", "0")
    assert (done.code, done.err) == (
        1,
        "error: Nothing to measure: --prompt and --decode are both 0.\n",
    )


@pytest.mark.parametrize("verb", ["bench", "perplexity"])
def test_scheme_and_budget_reach_the_model_that_is_measured(
    dure_command: Dure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    asked: list[Any] = []

    def load(name: str, **options: Any) -> None:
        asked.append((name, options["quantize"], options["memory"]))
        raise InvalidRequestError("enough")

    monkeypatch.setattr("dure.loading.load.load", load)
    path = tmp_path / "text.txt"
    path.write_text("words")
    texts = [str(path)] if verb == "perplexity" else []
    options = ("--quantize", "q6", "--memory", "2GiB")
    assert dure_command(verb, "m", *texts, *options).err == "error: enough\n"
    assert asked == [("m", "q6", 2 << 30)]


def test_a_text_that_is_not_utf_8_is_refused(dure_command: Dure, tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xe9")
    done = dure_command("perplexity", "m", str(path))
    assert (done.code, done.err.splitlines()[0]) == (
        1,
        f"error: {path} is not UTF-8 text: byte 3 is not.",
    )


def test_python_dash_m_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dure", "--version"],
        capture_output=True,
        text=True,
        check=True,
        env=ENVIRONMENT,
    )
    assert done.stdout == f"dure {dure.__version__}\n"


def test_a_reader_that_leaves_early_is_no_error() -> None:
    words = "word " * 50_000
    process = subprocess.Popen(
        [sys.executable, str(FAKE), "run", "fake", "--raw"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert process.stdin and process.stdout and process.stderr
    process.stdin.write(words.encode())
    process.stdin.close()
    process.stdout.read(10)
    process.stdout.close()
    assert (process.wait(60), process.stderr.read()) == (0, b"")
    process.stderr.close()


@pytest.mark.parametrize(
    "closed",
    [
        "<&-",
        "<&- >&- 2>&-",
        *(pytest.param(each, marks=pytest.mark.long) for each in (">&-", "2>&-")),
    ],
)
def test_a_stream_that_the_parent_closed_is_no_error(closed: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" "$1" run fake one {closed}', sys.executable, str(FAKE)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        env=ENVIRONMENT,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert bool(done.stdout) == (">&-" not in closed.replace("2>&-", ""))


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["run", "fake", "one"]])
def test_a_full_disk_is_one_sentence(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, str(FAKE), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env=ENVIRONMENT,
        )
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")


@pytest.mark.parametrize("where", ["FAKE_PAUSE", "FAKE_BUSY"])
def test_ctrl_c_ends_a_question_with_130_and_no_traceback(where: str) -> None:
    process = subprocess.Popen(
        [sys.executable, str(FAKE), "run", "fake", "one two three four"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**ENVIRONMENT, where: "600"},
        start_new_session=True,
    )
    assert process.stdout and process.stderr
    assert process.stdout.read(3) == b"one"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert process.stdout.read() == b"\n"
    assert b"Traceback" not in process.stderr.read()
    process.stdout.close()
    process.stderr.close()


def test_ctrl_c_that_was_ignored_at_the_start_does_not_end_an_answer() -> None:
    process = subprocess.Popen(
        [sys.executable, str(FAKE), "run", "fake", "one two three"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**ENVIRONMENT, "FAKE_PAUSE": "0.5"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # noqa: PLW1509
    )
    assert process.stdout
    assert process.stdout.read(3) == b"one"
    process.send_signal(signal.SIGINT)
    assert (process.stdout.read(), process.wait(60)) == (b" two three\n", 0)
    process.stdout.close()


def test_a_latin_terminal_gets_every_answer() -> None:
    done = subprocess.run(
        [sys.executable, str(FAKE), "run", "fake", "tea 🍵 time"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        env={**ENVIRONMENT, "PYTHONIOENCODING": "latin-1"},
    )
    assert done.stdout == b"tea ? time\n"

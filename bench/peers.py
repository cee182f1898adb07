"""How fast are dure and other engines on the same GGUF files, in one run?

    python bench/peers.py qwen2.5-coder-1.5b=FILE smollm2-135m=FILE … [--work prefill-512 decode]

`llama` is llama.cpp (pip install llama-cpp-python), `ik` is ik_llama.cpp (pip install
ik-llama-cpp-python): each from this Python, or from the one that --llama or --ik names. For every
piece of work (work.py), a short run tries each of a peer's settings: weights repacked or not, with
flash attention or without. The best setting whose perplexity agrees with dure's then runs in
alternation with dure, --repeat times, and medians are compared. A setting that crashes is reported.
The table goes to standard output as Markdown, every figure to standard error and --json.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import importlib.util
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import limits
from table import NAMES, Row, Setting, reading_share, settings_used, table
from work import MODELS, TITLES, WORK, Work

ROOT = Path(__file__).parent.parent
PEERS = {"llama": "llama_cpp", "ik": "ik_llama_cpp"}  # and the modules to import
MARKS = ("<!-- bench/peers.py writes this -->", "<!-- to here -->")
WINDOW, WINDOWS = 512, 2  # tokens whose second halves are scored, before a speed counts
WARM_UP = 128  # tokens that each process computes before anything is timed
AGREES = 0.02  # between two right engines, perplexities were 0.3 % apart
CONTENDER = 0.85  # of the best peer's short run; slower peers are shown by theirs, and left out


class EngineError(Exception):
    """An engine's process ended before it answered."""


class StartError(EngineError):
    """It ended while it loaded the model and computed its first token."""


class Worker:
    """An engine.py with one model loaded; `ask` it by the names of Session's methods."""

    def __init__(self, setting: Setting, model: Path, options: argparse.Namespace) -> None:
        python = {"dure": sys.executable, "llama": options.llama, "ik": options.ik}[setting.engine]
        flags = [f"--{name}" for name in ("repack", "flash") if getattr(setting, name)]
        script = str(Path(__file__).with_name("engine.py"))
        command = [python, script, setting.engine, str(model), *flags]
        self.process = subprocess.Popen(
            [*command, "--threads", str(options.threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if options.verbose or setting.engine == "dure" else subprocess.DEVNULL,
            text=True,
            env=os.environ | self._variables(setting.engine),
        )
        try:
            self.facts = self._answer()
        except EngineError as error:
            self.close()
            raise StartError(f"{error} at the start") from None

    @staticmethod
    def _variables(engine: str) -> dict[str, str]:
        if engine == "dure":
            return {"PYTHONPATH": os.pathsep.join([str(home()), os.getenv("PYTHONPATH", "")])}
        return {"GGML_NO_BACKTRACE": "1"}  # a debugger's view of each crash takes seconds

    def ask(self, what: str, **request: Any) -> dict[str, Any]:
        """The answer; EngineError if the process ended instead."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, and _answer says how
            print(json.dumps({"do": what, **request}), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            return dict(json.loads(line))
        status = self.process.wait()
        raise EngineError(f"crashed (signal {-status})" if status < 0 else f"failed ({status})")

    def close(self) -> None:
        """End the process, which frees its memory."""
        self.process.kill()
        self.process.communicate()


class Fleet:
    """The processes for one model: one for each engine and way of loading, started when needed."""

    def __init__(self, model: Path, options: argparse.Namespace) -> None:
        self.model = model
        self.options = options
        self.workers: dict[tuple[str, bool], Worker] = {}
        self.versions: dict[str, str] = {}

    def worker(self, setting: Setting) -> Worker:
        """The process that has the model loaded in this way."""
        key = (setting.engine, setting.repack)
        if key not in self.workers:
            self.workers[key] = Worker(setting, self.model, self.options)
            self.versions[setting.engine] = self.workers[key].facts["version"]
            warm_up = {"sequences": 1, "length": 1024, "flash": setting.flash, "depth": WARM_UP}
            self.workers[key].ask("hold", **warm_up)
        return self.workers[key]

    def speed(self, work: Work, setting: Setting, *, trial: bool = False) -> float:
        """Of one repeat of the work; a start is a new process."""
        time.sleep(0.1)  # threads of the engine before still spin for some milliseconds
        try:
            if work.kind == "start":
                worker = Worker(setting, self.model, self.options)
                worker.close()
                return 1 / float(worker.facts["first_token_s"])
            return work.speed(self.worker(setting).ask, setting.flash, trial=trial)
        except EngineError:
            self.drop(setting)
            raise

    def perplexity(self, setting: Setting, tokens: list[int]) -> float:
        """Of the second halves of the windows in tokens."""
        worker = self.worker(setting)
        worker.ask("hold", sequences=1, length=WINDOW, flash=setting.flash, depth=0)
        starts = range(0, len(tokens), WINDOW)
        losses = [worker.ask("loss", tokens=tokens[at : at + WINDOW])["loss"] for at in starts]
        return math.exp(statistics.fmean(losses))

    def drop(self, setting: Setting) -> None:
        """End the process of this setting, if there is one."""
        worker = self.workers.pop((setting.engine, setting.repack), None)
        if worker is not None:
            worker.close()

    def close(self) -> None:
        """End all processes."""
        for worker in self.workers.values():
            worker.close()
        self.workers.clear()


class Comparison:
    """The rows of one model, and remarks on what did not count."""

    def __init__(
        self,
        fleet: Fleet,
        work: Iterable[Work],
        engines: Iterable[str],
        record: Callable[..., None],
    ) -> None:
        self.fleet = fleet
        self.work = list(work)
        self.engines = list(engines)
        self.record = record
        self.remarks: list[str] = []
        self.trials: dict[Work, dict[Setting, float]] = {work: {} for work in self.work}
        self.agrees: dict[Setting, bool] = {Setting("dure"): True}

    def run(self, tokens: list[int], repeat: int) -> list[Row]:
        """Short runs of everything, then the alternations."""
        self.tokens = tokens
        self.ours = self.fleet.perplexity(Setting("dure"), tokens)
        self.record("perplexity", engine="dure", perplexity=self.ours)
        for engine in self.engines:
            self.try_engine(engine)
        return [self.alternate(work, repeat) for work in self.work]

    def try_engine(self, engine: str) -> None:
        """Fill `trials` for one peer: quick work first, then all long work of one setting in turn.

        The pieces of long work then share one context of the setting.
        """
        for long in (False, True):
            works = [work for work in self.work if work.long == long]
            for repack in (True, False):
                if long and self.slow_at_prefill(engine, repack):
                    continue
                for flash in (True, False):
                    for work in works:
                        self.try_setting(work, Setting(engine, repack, flash))
        for repack in (True, False):
            self.fleet.drop(Setting(engine, repack))

    def slow_at_prefill(self, engine: str, repack: bool) -> bool:
        """Whether short prompts were far slower than with the weights loaded the other way."""
        speeds = {
            setting: speed
            for work in self.work
            for setting, speed in self.trials[work].items()
            if work.kind == "prefill" and not work.long and setting.engine == engine
        }
        own = [speed for setting, speed in speeds.items() if setting.repack == repack]
        return bool(own) and max(own) < CONTENDER * max(speeds.values())

    def try_setting(self, work: Work, setting: Setting) -> None:
        """One short run. A crash is remarked; after one at the start, no more work is tried."""
        if self.agrees.get(setting) is False:
            return
        try:
            speed = self.fleet.speed(work, setting, trial=True)
        except StartError as error:
            self.exclude(setting, str(error))
            return
        except EngineError as error:
            self.remark(setting, f"{error} in {TITLES[work.name]}")
            return
        self.trials[work][setting] = speed
        self.record("trial", work=work.name, setting=str(setting), speed=speed)

    def exclude(self, setting: Setting, why: str) -> None:
        """Let the setting count for nothing, and say so."""
        self.agrees[setting] = False
        self.remark(setting, why)

    def remark(self, setting: Setting, why: str) -> None:
        """Say below the table what went wrong."""
        self.remarks.append(f"{setting} on {MODELS[self.work[0].model]}: {why}")
        self.record("remark", setting=str(setting), why=why)

    def is_right(self, setting: Setting) -> bool:
        """Whether its perplexity agrees with dure's; computed once a setting."""
        if setting not in self.agrees:
            try:
                theirs = self.fleet.perplexity(setting, self.tokens)
            except EngineError as error:
                self.fleet.drop(setting)
                self.exclude(setting, f"{error} in the perplexity check")
                return False
            self.record("perplexity", setting=str(setting), perplexity=theirs)
            self.agrees[setting] = abs(theirs / self.ours - 1) <= AGREES
            if not self.agrees[setting]:
                self.exclude(setting, f"wrong: perplexity {theirs:.2f}, dure's {self.ours:.2f}")
        return self.agrees[setting]

    def best_setting(self, work: Work, engine: str) -> Setting | None:
        """The fastest one of the short runs that is right."""
        trials = {s: speed for s, speed in self.trials[work].items() if s.engine == engine}
        ranked = sorted(trials, key=lambda setting: -trials[setting])
        return next((setting for setting in ranked if self.is_right(setting)), None)

    def alternate(self, work: Work, repeat: int) -> Row:
        """dure and the peers that come near the best of them, in turns."""
        row = Row(work, settings={"dure": Setting("dure")})
        for engine in self.engines:
            setting = self.best_setting(work, engine)
            if setting is not None:
                row.settings[engine] = setting
                row.trials[engine] = self.trials[work][setting]
        fastest = max(row.trials.values(), default=0.0)
        for engine in list(row.settings):
            if row.trials.get(engine, fastest) >= CONTENDER * fastest:
                row.speeds[engine] = []
        # Not timed: after it, each process has this work's cache and has touched its weights.
        for engine in row.speeds:
            if work.kind == "decode" or (work.kind == "prefill" and not work.long):
                self.fleet.speed(work, row.settings[engine], trial=not work.long)
        for _ in range(repeat):
            for engine, speeds in row.speeds.items():
                speeds.append(self.fleet.speed(work, row.settings[engine]))
                facts = {"work": work.name, "setting": str(row.settings[engine])}
                self.record("speed", **facts, speed=speeds[-1])
        return row


def output_of(*command: str) -> str:
    """What the command prints, or "unknown"."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def machine() -> dict[str, Any]:
    """The processor, its cores, and the commit that is measured."""
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    # --dirty would name a tree whose built extension is not ignored; -uno is what matters.
    changed = output_of("git", "status", "--porcelain", "--untracked-files=no")
    commit = output_of("git", "rev-parse", "--short", "HEAD") + (" and changes" if changed else "")
    return {
        "processor": next(names, platform.processor()),
        "cores": len(os.sched_getaffinity(0)),
        "commit": commit,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def home() -> Path:
    """The folder with the dure that is measured: the one that this Python imports, else the one
    beside this script."""
    spec = importlib.util.find_spec("dure")
    return ROOT if spec is None or spec.origin is None else Path(spec.origin).parent.parent


def usable(engine: str, python: str) -> bool:
    """Whether that Python has the peer."""
    look = "import importlib.util as u, sys; sys.exit(u.find_spec(sys.argv[1]) is None)"
    return subprocess.run([python, "-c", look, PEERS[engine]], check=False).returncode == 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="NAME=FILE", help=", ".join(MODELS))
    parser.add_argument("--work", nargs="+", choices=TITLES, default=list(TITLES))
    parser.add_argument("--repeat", type=int, default=3, help="alternations")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--llama", default=sys.executable, help="the Python that has llama.cpp")
    parser.add_argument("--ik", default=sys.executable, help="the Python that has ik_llama.cpp")
    parser.add_argument("--text", type=Path, default=ROOT / "docs" / "architecture.md")
    parser.add_argument("--json", type=Path, help="a file that every figure is appended to")
    parser.add_argument("--write", type=Path, help="put the table between this file's marks")
    parser.add_argument("--verbose", action="store_true", help="show what the engines log")
    options = parser.parse_args()
    options.files = {}
    for word in options.models:
        name, _, file = word.partition("=")
        if name not in MODELS or not Path(file).is_file():
            parser.error(f"{word} is not NAME=FILE with a name of {', '.join(MODELS)} and a file")
        options.files[name] = Path(file)
    return options


@dataclass
class Report:
    """What is printed at the end."""

    rows: list[Row] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    read_bytes: dict[str, int] = field(default_factory=dict)  # model -> what one token reads
    isa: str = ""


class Recorder:
    """Writes every figure to the JSON lines file, if any, and to standard error."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.start = time.perf_counter()

    def __call__(self, what: str, **facts: Any) -> None:
        at_s = round(time.perf_counter() - self.start, 1)
        line = json.dumps({"what": what, "at_s": at_s, **facts}, ensure_ascii=False)
        print(line, file=sys.stderr, flush=True)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                print(line, file=file)


def replaced(document: str, shown: str) -> str:
    """The document with `shown` between the marks; ValueError if it does not have both."""
    before, rest = document.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    return f"{before}{MARKS[0]}\n{shown}\n{MARKS[1]}{after}"


def compare(options: argparse.Namespace, engines: list[str], record: Recorder) -> Report:
    """All work that was asked for, model by model."""
    report = Report()
    text = options.text.read_text("utf-8")
    for model, file in options.files.items():
        work = [work for work in WORK if work.model == model and work.name in options.work]
        fleet = Fleet(file, options)
        try:
            ours = fleet.worker(Setting("dure"))
            tokens = ours.ask("tokenize", text=text)["tokens"][: WINDOW * WINDOWS]
            comparison = Comparison(fleet, work, engines, record)
            report.rows += comparison.run(tokens, options.repeat)
            report.remarks += comparison.remarks
            report.versions |= fleet.versions
            report.isa = ours.facts["isa"]
            report.read_bytes[model] = ours.facts["read_bytes"]
        finally:
            fleet.close()
    return report


def main() -> None:
    """Run the comparison and print it."""
    options = parse()
    engines = [engine for engine in PEERS if usable(engine, getattr(options, engine))]
    record = Recorder(options.json)
    about = machine()
    record("machine", **about)
    # pip compiles what it installs, the peers too; a source tree may never have been.
    compileall.compile_dir(home() / "dure", quiet=2)
    read_limit = limits.memory_read(options.threads)
    report = compare(options, engines, record)
    versions = ", ".join(f"{NAMES[engine]} {word}" for engine, word in report.versions.items())
    facts = [
        f"{about['date']}, {about['processor']}",
        f"{options.threads} threads of {about['cores']} cores",
        f"memory read {read_limit} GB/s",
        f"dure at {about['commit']} ({report.isa})",
        f"versions: {versions}",
        f"medians of {options.repeat} alternations",
        "in brackets: the short run of a peer that did not come near the best",
    ]
    remarks = settings_used(report.rows) + report.remarks
    remarks += reading_share(report.rows, report.read_bytes, read_limit)
    shown = "\n".join(
        [
            table(report.rows, engines),
            f"\n{'; '.join(facts)}.\n",
            *(f"- {remark}" for remark in remarks),
            f"\n    python {' '.join(sys.argv)}",
        ]
    )
    print(shown)
    if options.write is not None:
        options.write.write_text(replaced(options.write.read_text("utf-8"), shown), "utf-8")


if __name__ == "__main__":
    main()

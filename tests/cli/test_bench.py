"""dure bench: sweeps, and the tables that come of them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from outcome import Dure
from tiny_gguf import config_of, float32, parameters_of, write_gguf

from dure.cli.bench_table import Row, formatted


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    config = config_of("qwen2")
    write_gguf(path, config, parameters_of(config), float32)
    return path


def row(**fields: Any) -> Row:
    known = {
        **{"build": "1.2", "cpu_info": "A | B", "isa": "avx2", "model_filename": "m"},
        **{"model_type": "qwen2 Q8_0", "model_size": 3 << 29, "model_n_params": 1_540_000_000},
        **{"n_threads": 2, "type_kv": "f16", "n_prompt": 512, "n_gen": 0, "n_depth": 0},
        **{"n_parallel": 1, "test_time": "2026-01-01T00:00:00+00:00", "samples_ts": (10.0, 12.0)},
    }
    return Row(**{**known, **fields})


def table(text: str) -> list[list[str]]:
    """The cells of a Markdown table."""
    assert len({len(line) for line in text.splitlines()}) == 1
    lines = text.replace("\\|", "\0").splitlines()
    return [[cell.strip().replace("\0", "|") for cell in line.split("|")[1:-1]] for line in lines]


def test_a_table_has_machine_size_and_the_spread_of_rounds() -> None:
    head, _, first = table(formatted([row()], "md"))
    assert head == ["model", "size", "params", "processor", "threads", "test", "t/s"]
    assert first == [
        *("m (qwen2 Q8_0)", "1.50 GiB", "1.54 B", "A | B, avx2", "2", "pp512", "11.00 ± 1.41")
    ]


def test_columns_come_where_they_say_something() -> None:
    decoding = row(n_prompt=0, n_gen=64, n_depth=4096, n_parallel=8, samples_ts=(5.0,))
    read = row(read_mb=12.34, hit_rate=0.876)
    head, _, first, second = table(formatted([decoding, read], "md"))
    assert head[5:] == ["parallel", "test", "t/s", "MB read a token", "hits %"]
    assert first[5:] == ["8", "tg64 @ d4096", "5.00 ± 0.00", "", ""]
    assert second[5:] == ["1", "pp512", "11.00 ± 1.41", "12.3", "87.6"]


def test_csv_and_json_have_the_names_of_llama_bench() -> None:
    rows = [row(), row(n_prompt=0, n_gen=8)]
    read = list(csv.DictReader(io.StringIO(formatted(rows, "csv"))))
    assert [each["n_gen"] for each in read] == ["0", "8"]
    listed = json.loads(formatted(rows, "json"))
    shared = {
        *("cpu_info", "model_filename", "model_type", "model_size", "model_n_params"),
        *("n_threads", "n_prompt", "n_gen", "n_depth", "test_time", "avg_ts", "stddev_ts"),
    }
    assert shared <= listed[0].keys() == read[0].keys()
    assert (listed[0]["avg_ts"], listed[0]["stddev_ts"]) == (11.0, 1.41)
    assert listed[0]["samples_ts"] == [10.0, 12.0]


def test_a_sweep_measures_each_combination(dure_command: Dure, model: Path) -> None:
    sizes = ["--prompt", "4,8", "--decode", "2", "--depth", "0,3", "--parallel", "1,2"]
    options = ["--threads", "1,2", "--repeat", "2", "--output", "json"]
    done = dure_command("bench", str(model), *sizes, *options)
    assert (done.code, done.err) == (0, "")
    rows = json.loads(done.out)
    expected = ["pp4", "pp8", "tg2", "tg2 @ d3", "tg2", "tg2 @ d3"]
    assert [each["test"] for each in rows] == expected * 2
    assert [each["n_parallel"] for each in rows] == [1, 1, 1, 1, 2, 2] * 2
    assert [each["n_threads"] for each in rows] == [1] * 6 + [2] * 6
    assert all(len(each["samples_ts"]) == 2 and each["avg_ts"] > 0 for each in rows)
    assert {each["model_type"] for each in rows} == {"qwen2 F32"}
    assert rows[0]["model_size"] > rows[0]["model_n_params"] > 1000


def test_the_default_is_a_table_and_batch_is_still_a_name(dure_command: Dure, model: Path) -> None:
    sizes = ["--prompt", "4", "--decode", "0", "--batch", "2", "--repeat", "1"]
    done = dure_command("bench", str(model), *sizes, "--threads", "1")
    assert (done.code, done.err) == (0, "")
    head, _, first = table(done.out)
    assert dict(zip(head, first, strict=True))["test"] == "pp4"
    assert first[0].startswith("tiny")


@pytest.mark.parametrize(
    "options",
    [
        *(["--prompt", text] for text in ("", ",", "1,", "a", "-1", "1.5", "9" * 30, "5 12", "٣")),
        *(["--threads", text] for text in ("0", "1,0", "all", "70000")),
        ["--parallel", "513"],
        ["--batch", "0"],
        ["--output", "xml"],
    ],
)
def test_numbers_that_are_none_are_wrong_usage(dure_command: Dure, options: list[str]) -> None:
    done = dure_command("bench", "m", *options)
    assert (done.code, done.out) == (2, "")
    name = "--parallel" if options[0] == "--batch" else options[0]
    assert name in done.err


def test_a_sweep_that_is_too_large_or_for_json_alone_is_refused(dure_command: Dure) -> None:
    many = ",".join(map(str, range(1, 40)))
    done = dure_command("bench", "m", "--decode", many, "--depth", many)
    assert done.code == 1
    assert "1,000 are the most" in done.err
    done = dure_command("bench", "m", "--prompt", "1,2", "--json")
    assert done.code == 1
    assert "--output json" in done.err

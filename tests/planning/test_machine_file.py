"""The file of a machine: what was measured comes back, and anything else is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dure.errors import InvalidRequestError
from dure.metering.estimates import Watts
from dure.planning import measure as measuring
from dure.planning.machine import ROWS, AttentionSpeed, Machine, read_machine, write_machine
from dure.planning.measure import Others, kept_machine, machine_key, processor, this_machine
from dure.planning.probes import LEAST, TYPES

MACHINE = Machine(
    processor="a processor",
    isa="avx2",
    threads=2,
    kernels="0123",
    memory_bytes=8 << 30,
    read_bytes_s_1=1e10,
    read_bytes_s=2e10,
    gops={"Q4_K": tuple(float(rows) for rows in ROWS)},
    attention={"f16 one": AttentionSpeed((1, 4), (1.0, 2.0), (3.0, 4.0), (16, 64), 5.0)},
    layer_s=1e-5,
    element_s=0.0,
    step_s=1e-5,
    disk_bytes_s=None,
    expert_factors=(1.5, 1.25, 1.0),
    assumed=("something",),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "machine.json"


def test_a_machine_comes_back_as_it_was_written(path: Path) -> None:
    write_machine(MACHINE, path)
    assert read_machine(path) == MACHINE
    assert [each.name for each in path.parent.iterdir()] == ["machine.json"]


def test_a_machine_that_cannot_be_written_leaves_the_old_file_and_nothing_else(path: Path) -> None:
    write_machine(MACHINE, path)
    broken = path.with_name("not json.json")
    with pytest.raises(TypeError):
        write_machine(object(), broken)  # type: ignore[arg-type]
    assert [each.name for each in path.parent.iterdir()] == ["machine.json"]


def changed(path: Path, **values: object) -> Path:
    write_machine(MACHINE, path)
    content = json.loads(path.read_text())
    content.update(values)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"dure_machine": 99}, "is of form 99, and this dure reads form 1"),
        ({"threads": -1}, "threads"),
        ({"threads": True}, "threads"),
        ({"layer_s": float("nan")}, "layer_s"),
        ({"read_bytes_s": 0.0}, "read_bytes_s"),
        ({"processor": 3}, "processor"),
        ({"gops": {}}, "gops"),
        ({"gops": {"Q4_K": [1.0]}}, "Q4_K"),
        ({"gops": {"Q4_K": [0.0] * len(ROWS)}}, "Q4_K"),
        ({"gops": {"Q99": [1.0] * len(ROWS)}}, "Q99"),
        ({"attention": {"f16 one": {"groups": [1]}}}, "f16 one"),
        (
            {
                "attention": {
                    "f16 one": {
                        "groups": [2, 1],
                        "narrow": [1, 1],
                        "wide": [1, 1],
                        "columns": [1, 2],
                    }
                }
            },
            "f16 one",
        ),
        ({"expert_factors": [1.0]}, "expert_factors is no list of 3 numbers"),
        ({"expert_factors": [1.0, 0.0, 1.0]}, "a factor of experts"),
        ({"more": 1}, "'more' is not known"),
        ({"assumed": "x"}, "assumed"),
    ],
)
def test_a_file_with_wrong_values_is_refused_and_says_which(
    path: Path, values: dict[str, object], said: str
) -> None:
    with pytest.raises(InvalidRequestError) as error:
        read_machine(changed(path, **values))
    assert said in error.value.message
    assert error.value.message.count(". ") == 0
    assert "--save-machine" in error.value.hint


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model": 1}', "\x00"])
def test_a_file_of_another_kind_is_refused_in_a_sentence(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(InvalidRequestError, match=r"machine\.json"):
        read_machine(path)


def test_a_missing_file_and_a_large_one_are_refused_too(path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"machine\.json"):
        read_machine(path)
    path.write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(InvalidRequestError, match="the limit is"):
        read_machine(path)


def test_fields_that_are_missing_are_named(path: Path) -> None:
    write_machine(MACHINE, path)
    content = json.loads(path.read_text())
    del content["step_s"]
    path.write_text(json.dumps(content))
    with pytest.raises(InvalidRequestError, match="step_s missing"):
        read_machine(path)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often the machine was measured: by which numbers of threads."""
    times: list[int] = []

    def measure(threads: int, **_: object) -> Machine:
        times.append(threads)
        return MACHINE

    monkeypatch.setattr(measuring, "measure", measure)
    return times


def test_a_machine_is_measured_once_and_kept(tmp_path: Path, measured: list[int]) -> None:
    assert kept_machine(2, folder=tmp_path) is None
    assert this_machine(2, folder=tmp_path) == MACHINE
    assert this_machine(2, folder=tmp_path) == MACHINE
    assert kept_machine(2, folder=tmp_path) == MACHINE
    assert measured == [2]


def test_other_threads_another_processor_and_other_kernels_are_measured_anew(
    tmp_path: Path, measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    this_machine(2, folder=tmp_path)
    this_machine(1, folder=tmp_path)
    monkeypatch.setattr(measuring, "processor", lambda: "another")
    this_machine(2, folder=tmp_path)
    monkeypatch.setattr(measuring, "kernels_version", lambda: "another")
    this_machine(2, folder=tmp_path)
    monkeypatch.setattr(measuring.kernels, "isa", lambda: "portable")
    this_machine(2, folder=tmp_path)
    assert measured == [2, 1, 2, 2, 2]


def test_a_kept_file_that_is_damaged_is_measured_anew(tmp_path: Path, measured: list[int]) -> None:
    (tmp_path / f"{machine_key(2)}.json").write_text("{")
    assert kept_machine(2, folder=tmp_path) is None
    assert this_machine(2, folder=tmp_path) == MACHINE
    assert kept_machine(2, folder=tmp_path) == MACHINE
    assert measured == [2]


def test_a_folder_that_cannot_be_written_to_means_measuring_each_time(
    tmp_path: Path, measured: list[int]
) -> None:
    (tmp_path / "file").write_text("")
    for _ in range(2):
        assert this_machine(2, folder=tmp_path / "file") == MACHINE
    assert measured == [2, 2]


def test_a_processor_has_a_name_even_where_a_virtual_machine_hides_it(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD  EPYC\n\n"
        "processor\t: 1\nmodel name\t: another\n"
    )
    assert processor(tmp_path) == "AMD EPYC (family 25, model 1)"
    assert processor(tmp_path / "none") == "unknown processor"
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd0c\n"
    )
    assert processor(tmp_path) == "Neoverse N1"


@pytest.mark.long
def test_measuring_finds_every_figure_and_says_what_there_was_no_time_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DURE_HOME", str(tmp_path))
    for name, value in {"LARGE_BYTES": 1 << 20, "MOST_OPERATIONS": 1e7, "LIMIT_S": 0.0}.items():
        monkeypatch.setattr(measuring.probes, name, value)
    told: list[str] = []
    found = measuring.measure(1, watts=Watts(10, 30), seconds=0.0, progress=told.append)
    assert set(found.gops) == {*TYPES[:LEAST], "I4G128"}
    assert all(rate > 0 for rates in found.gops.values() for rate in rates)
    kinds = {f"{kind}{dtype}" for kind in ("", "latent ") for dtype in ("f16", "q8")}
    assert set(found.attention) == {f"{kind} {rows}" for kind in kinds for rows in ("one", "many")}
    assert min(found.read_bytes_s, found.read_bytes_s_1, found.delta_ns, found.layer_s) > 0
    assert len(found.expert_factors) == 3 and min(found.expert_factors) > 0
    assert (found.idle_watts, found.busy_watts, found.watts_from) == (10, 30, "watts")
    assert "products, Q4_K" in told
    left = [dtype for dtype in TYPES[LEAST:] if dtype != "I4G128"]
    assert f"there was no time to measure {', '.join(left)}" in found.assumed
    assert not list(tmp_path.glob("machines/*"))  # the disk's scratch file is gone
    write_machine(found, tmp_path / "machine.json")
    assert read_machine(tmp_path / "machine.json") == found


def test_what_other_programs_took_is_told_apart_from_our_own(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu 100 0 0 900 0 0 0 0 0 0\n")
    others = Others(stat)
    stat.write_text("cpu 1000100 0 0 1000900 0 0 0 0 0 0\n")
    assert others.share() == pytest.approx(0.5, abs=0.01)
    assert Others(tmp_path / "none").share() == 0.0

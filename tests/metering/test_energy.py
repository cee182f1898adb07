"""Joules: of RAPL trees as machines have them, of sensors and batteries, or honestly estimated."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from power_tree import RANGE_UJ, Domain, chip, two_sockets

from dure.errors import InvalidRequestError
from dure.metering.energy import Energy, find_energy
from dure.metering.estimates import Watts, published_watts
from dure.metering.rapl import find_rapl
from dure.metering.reading import Reading

EPYC = "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: {}\n\n"


def energy(root: Path, watts: Watts | None = None, cpu: str = "Nobody's Z80") -> Energy:
    """What a machine with these trees has."""
    (root / "cpuinfo").write_text(EPYC.format(cpu).replace("25", "99"))
    return find_energy(
        watts,
        powercap=root / "powercap",
        hwmon=root / "hwmon",
        power_supply=root / "power_supply",
        cpuinfo=root / "cpuinfo",
    )


def test_packages_and_dram_of_two_sockets_count_once(tmp_path: Path) -> None:
    domains = two_sockets(tmp_path / "powercap")
    found = energy(tmp_path)
    assert "RAPL: packages and DRAM of 2 sockets" in found.said
    for number, domain in enumerate(domains.values()):
        domain.take(10**number)
    # package-0, core, dram, package-1, core, dram, psys, mmio: in this order
    assert found.read(1000.0, 1.0) == Reading(1 + 100 + 1000 + 100_000, "rapl")
    assert found.read(1.0, 1.0) == Reading(0.0, "rapl")


def test_a_counter_that_begins_anew_loses_no_joule(tmp_path: Path) -> None:
    domains = two_sockets(tmp_path / "powercap", at_uj=RANGE_UJ - 5_000_000)
    found = energy(tmp_path)
    taken = 0.0
    for _ in range(30):
        domains["intel-rapl:0"].take(900.0)
        domains["intel-rapl:1:1"].take(0.25)
        reading = found.read(1.0, 1.0)
        assert reading is not None
        taken += reading.joules
    assert taken == pytest.approx(30 * 900.25)


@pytest.mark.parametrize("jump", [-50_000_000_000, -1, +90_000_000_000])
def test_a_counter_that_jumps_is_estimated_and_then_read_again(tmp_path: Path, jump: int) -> None:
    domains = two_sockets(tmp_path / "powercap", at_uj=100_000_000_000)
    found = energy(tmp_path, Watts(10, 30))
    package = domains["intel-rapl:0"]
    package.set(package.value + jump)
    reading = found.read(2.0, 0.0)
    assert reading == Reading(20.0, "watts")
    package.take(7.0)
    assert found.read(1.0, 0.0) == Reading(7.0, "rapl")


def test_a_jump_that_nobody_can_estimate_is_unknown(tmp_path: Path) -> None:
    domains = two_sockets(tmp_path / "powercap", at_uj=100_000_000_000)
    found = energy(tmp_path)
    domains["intel-rapl:1"].set(5)
    assert found.read(1.0, 1.0) is None


def test_counters_for_root_only_are_explained(tmp_path: Path, monkeypatch) -> None:
    two_sockets(tmp_path / "powercap")
    opened = os.open

    def refused(path: object, *rest: object, **more: object) -> int:
        if str(path).endswith("energy_uj"):
            raise PermissionError(13, "Permission denied")
        return opened(path, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refused)
    found = energy(tmp_path, Watts(20, 60))
    monkeypatch.undo()
    [remark] = found.remarks
    assert "by root only" in remark
    assert "chmod a+r" in remark
    assert found.read(1.0, 0.0) == Reading(20.0, "watts")
    assert "estimated" in found.said


def test_a_counter_that_can_no_longer_be_read_says_nothing(tmp_path: Path) -> None:
    domains = two_sockets(tmp_path / "powercap")
    found = find_rapl(tmp_path / "powercap").source
    assert found is not None
    domains["intel-rapl:0:1"].file.write_text("")
    assert found.read(1.0, 1.0) is None


@pytest.mark.parametrize("damage", ["name", "max_energy_range_uj", "energy_uj"])
def test_a_tree_that_is_not_whole_is_no_source(tmp_path: Path, damage: str) -> None:
    Domain(tmp_path / "powercap/intel-rapl:0", "package-0")
    (tmp_path / "powercap/intel-rapl:0" / damage).write_text("")
    found = find_rapl(tmp_path / "powercap")
    assert found.source is None


def test_without_anything_joules_are_unknown_and_a_person_can_name_watts(tmp_path: Path) -> None:
    found = energy(tmp_path)
    assert found.read(1.0, 1.0) is None
    assert "--watts" in " ".join(found.remarks)
    assert "unknown" in found.said


def test_watts_that_were_named_lie_between_idle_and_busy(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("dure.machine.usable_threads", lambda: 4)
    found = energy(tmp_path, Watts(20, 100))
    for cores, watts in ((0, 20), (1, 40), (4, 100), (5, 100)):
        assert found.read(10.0, 10.0 * cores) == Reading(pytest.approx(10 * watts), "watts")
    assert "estimated from 20 W idle and 100 W busy" in found.said


def test_a_processor_is_known_by_its_name_and_a_part_of_it_takes_its_part(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    for name, tdp, of_cores in (
        ("AMD EPYC 7763 64-Core Processor", 280, 64),
        ("Intel(R) Xeon(R) Platinum 8480+", 350, 56),
        ("Intel(R) Core(TM) i9-13900K", 125, 24),
        ("13th Gen Intel(R) Core(TM) i9-13900K CPU @ 3.00GHz", 125, 24),
        ("AMD Ryzen 9 7950X 16-Core Processor", 170, 16),
        ("AMD Ryzen 9 7950X3D 16-Core Processor", 120, 16),
        ("AMD EPYC", 280, 64),  # as a virtual machine shows a 7003
    ):
        cpuinfo.write_text(EPYC.format(name))
        found = published_watts(cpuinfo, 2)
        assert found is not None, name
        assert found.tdp == tdp
        assert found.watts.busy == pytest.approx(2 * tdp / of_cores)
    cpuinfo.write_text(EPYC.format("Nobody's Z80").replace("25", "99"))
    assert published_watts(cpuinfo, 2) is None


def test_a_tdp_is_called_an_estimate(tmp_path: Path) -> None:
    found = energy(tmp_path, cpu="AMD EPYC 7763 64-Core Processor")
    assert "estimated from the 280 W published for AMD EPYC 7763" in found.said
    reading = found.read(1.0, 1.0)
    assert reading is not None
    assert reading.how == "tdp"


def test_hwmon_is_read_where_it_is_the_processor_or_the_machine(tmp_path: Path) -> None:
    hwmon = tmp_path / "hwmon"
    chip(hwmon, "amdgpu", power1_average=90_000_000, energy1_input=1)
    assert "unknown" in energy(tmp_path).said
    meter = chip(hwmon, "power_meter", power1_average=60_000_000)
    found = energy(tmp_path)
    assert "hwmon power_meter" in found.said
    (meter / "power1_average").write_text("80000000")
    assert found.read(2.0, 1.0) == Reading(140.0, "hwmon")


def test_hwmon_counters_of_sockets_leave_the_cores_out(tmp_path: Path) -> None:
    sensors = {"energy1_input": 1_000, "energy1_label": "Ecore000"}
    sensors |= {"energy2_input": 5_000_000, "energy2_label": "Esocket0"}
    folder = chip(tmp_path / "hwmon", "amd_energy", **sensors)
    found = energy(tmp_path)
    (folder / "energy1_input").write_text("999000000")
    (folder / "energy2_input").write_text("8500000")
    assert found.read(1.0, 1.0) == Reading(3.5, "hwmon")
    (folder / "energy2_input").write_text("1")
    assert found.read(1.0, 1.0) is None


def test_a_battery_is_read_while_it_feeds_the_machine(tmp_path: Path) -> None:
    battery = chip(
        tmp_path / "power_supply",
        "BAT0",
        type="Battery",
        status="Discharging",
        current_now=2_000_000,
        voltage_now=10_000_000,
    )
    found = energy(tmp_path, Watts(5, 25))
    assert "battery" in found.said
    assert found.read(3.0, 0.0) == Reading(60.0, "battery")
    (battery / "status").write_text("Charging\n")
    assert found.read(1.0, 0.0) == Reading(5.0, "watts")
    (battery / "status").write_text("Discharging\n")
    assert found.read(1.0, 0.0) == Reading(20.0, "battery")


def test_power_is_asked_for_once_a_second(tmp_path: Path) -> None:
    sensor = chip(tmp_path / "hwmon", "power_meter", power1_average=10_000_000)
    found = energy(tmp_path)
    (sensor / "power1_average").write_text("30000000")
    taken = [found.read(0.25, 0.1) for _ in range(4)]
    assert [each.joules for each in taken if each] == [2.5, 2.5, 2.5, 5.0]


@pytest.mark.parametrize("text", ["", "5", "5,", "50,20", "-1,5", "nan,5", "1,inf", "1,2,3", "a,b"])
def test_watts_that_are_no_watts_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="Watts"):
        Watts.parse(text)

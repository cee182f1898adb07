"""docs/isa.md has what csrc/isa/contract.h holds every instruction set's header to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
CONTRACT, PAGE = ROOT / "csrc" / "isa" / "contract.h", ROOT / "docs" / "isa.md"
TYPES = {"f32x16", "i32x16", "u8x64", "MatrixUnit"}
OPERATORS = {"+", "-", "*", "/"}


@pytest.mark.skipif(not (CONTRACT.exists() and PAGE.exists()), reason="not a clone: no csrc, docs")
def test_the_page_of_instruction_sets_names_what_the_contract_asks_for() -> None:
    source = CONTRACT.read_text("utf-8")
    checked = set(re.findall(r"DURE_GIVES\(\s*\w+,\s*(\w+)(?:<[^>]*>)?\(", source))
    checked -= {"f", "i", "u"}  # the contract's own values
    constants = set(re.findall(r"static_assert\((k\w+)", source))
    assert len(checked) > 30
    assert len(constants) == 9
    # The first column of the page's tables, and what the text on matrix units adds.
    named = set()
    for line in PAGE.read_text("utf-8").splitlines():
        if line.startswith("| `"):
            named |= set(re.findall(r"`([\w+*/-]+)", line.split(" | ")[0]))
    assert named - OPERATORS - TYPES | {"store_i8"} == checked | constants
    assert named >= OPERATORS | TYPES

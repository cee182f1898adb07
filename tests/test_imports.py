"""What may import what, read from the source of every module, function-level imports too."""

from __future__ import annotations

import ast
import gc
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "dure"

# From left to right; a module imports only from groups to the left of its own.
LINE = (
    {"errors"},
    {"calls", "progress"},
    {"formats", "machine", "processor"},
    {"hub"},
    {"text", "kernels"},
    {"batch", "weights"},
    {"layers", "metering"},
    {"models"},
    {"engine", "convert"},
    {"chat", "loading", "benchmark"},
    {"planning", "importance"},
    {"cluster"},
    {"pooling"},
    {"driver", "arguments"},
    {"replicas"},
    {"assembly", "async_driver", "preparing"},
    {"llm"},
    {"async_llm"},
    {"measure", "answer"},  # names of before 0.2
    {"server"},
    {"cli"},
)
PLACE = {name: place for place, group in enumerate(LINE) for name in group}
HUB_MAY_IMPORT = {"errors", "formats"}
ONLY_IN_HUB = {"socket", "ssl", "http", "urllib", "requests", "httpx", "huggingface_hub", "ftplib"}
ONLY_IN_SERVER = {"fastapi", "starlette", "uvicorn", "pydantic", "prometheus_client"}
NOWHERE = {"torch", "transformers", "pickle", "marshal", "shelve", "dill"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.fixture(scope="module", autouse=True)
def forget() -> Iterator[None]:
    """The trees are large, and no garbage: they go when these tests have ended."""
    gc.disable()
    yield
    gc.enable()
    nodes.cache_clear()


@cache
def nodes(path: Path) -> list[ast.AST]:
    """All nodes of the file's syntax tree."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def imported(path: Path) -> set[tuple[str, ...]]:
    """Every module imported in the file, as a dotted path: ("dure", "engine", "cache")."""
    found: set[tuple[str, ...]] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found.update(tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            source = tuple((node.module or "").split("."))
            # `from dure import hub` names a module; `from dure.hub import resolve` names one too.
            found.update(
                (*source, alias.name) if source == ("dure",) else source for alias in node.names
            )
    return found


def part_of(path: Path) -> str:
    """The part of dure a file belongs to: "engine" for src/dure/engine/block_pool.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def test_imports_point_to_the_left() -> None:
    for path in modules():
        part = part_of(path)
        if part in ("__init__", "__main__"):
            continue  # the public names, and the door to the command line
        for target in imported(path):
            if target[0] != "dure" or len(target) == 1:
                continue
            name, where = target[1], name_of(path)
            if name not in PLACE:
                assert name == "__version__", f"{where} imports dure.{name}, which has no place"
            elif name != part:
                assert PLACE[name] < PLACE[part], f"{where} imports {name}, to its right or beside"


def test_no_files_import_each_other_in_a_circle() -> None:
    """Type-checking imports count, too: what needs the other to be understood is one file."""
    files = {
        ".".join(("dure", *path.relative_to(PACKAGE).with_suffix("").parts)) for path in modules()
    }
    names = {name.removesuffix(".__init__") for name in files}
    left = {
        ".".join(("dure", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): imported_files(path, names)
        for path in modules()
    }
    while left:
        free = {name for name, needed in left.items() if not needed & left.keys() - {name}}
        assert free, f"these import each other in a circle, or what does: {sorted(left)}"
        left = {name: needed for name, needed in left.items() if name not in free}


def imported_files(path: Path, names: set[str]) -> set[str]:
    """The modules of dure that the file imports: `from package import module` names the module."""
    found: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in names:
                    found.add(inner)
                elif (
                    alias.name != "_core"
                ):  # the extension, which lies in the package and imports nothing
                    found.add(node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return found & names


def test_the_hub_knows_only_errors_and_formats() -> None:
    for path in (PACKAGE / "hub").rglob("*.py"):
        ours = {target[1] for target in imported(path) if target[0] == "dure" and len(target) > 1}
        assert set() == ours - HUB_MAY_IMPORT - {"hub"}, name_of(path)


def test_every_part_has_a_place_in_the_line() -> None:
    parts = {part_of(path) for path in modules()} - {"__init__", "__main__"}
    assert set() == parts - set(PLACE)


def test_nothing_is_imported_where_it_must_not_be() -> None:
    for path in modules():
        where, names = name_of(path), {target[0] for target in imported(path)}
        assert set() == names & NOWHERE, where
        if part_of(path) not in ("hub", "server", "cluster"):
            assert set() == names & ONLY_IN_HUB, where
        if part_of(path) == "server":
            assert names & ONLY_IN_HUB <= {"socket", "ssl"}, f"{where}: the server asks nobody"
        else:
            assert set() == names & ONLY_IN_SERVER, where
        if part_of(path) == "cluster":
            assert names & ONLY_IN_HUB <= {"socket"}, f"{where}: it asks nobody outside"
        if where != "cluster/nodes.py":
            assert "ray" not in names, where
        if not where.startswith("chat/template"):
            assert "jinja2" not in names, where


def test_nothing_runs_text_as_code_or_through_a_shell() -> None:
    for path in modules():
        for node in nodes(path):
            if not isinstance(node, ast.Call):
                continue
            function, where = node.func, f"{name_of(path)}:{node.lineno}"
            if isinstance(function, ast.Name):
                assert function.id not in ("eval", "exec", "compile", "__import__"), where
            elif isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
                called = (function.value.id, function.attr)
                assert called not in (("os", "system"), ("os", "popen")), where
            assert "shell" not in [word.arg for word in node.keywords], where


def test_every_file_of_tests_has_a_name_of_its_own() -> None:
    """pytest imports two of one name only from packages, which these folders are not."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(names) == sorted({*names})

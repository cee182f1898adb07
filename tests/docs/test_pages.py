"""The pages under docs/ say what the code does."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import dure

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "src" / "dure"


def generator() -> ModuleType:
    """docs/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["generate"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["cli.md", "api.md", "environment.md"])
def test_a_generated_page_is_what_the_code_says(page: str) -> None:
    path = ROOT / "docs" / page
    assert generator().PAGES[page]() == path.read_text(encoding="utf-8"), (
        "run `python docs/generate.py`"
    )


def public_classes() -> list[str]:
    return [name for name in dure.__all__ if inspect.isclass(getattr(dure, name))]


def methods() -> Iterator[tuple[str, Any]]:
    """Every public method of every public class, constructors with a docstring too."""
    for name in public_classes():
        kind = getattr(dure, name)
        for member, value in vars(kind).items():
            if inspect.isfunction(value) and not member.startswith("_"):
                yield f"{name}.{member}", value
        if not is_dataclass(kind) and not issubclass(kind, BaseException):
            yield f"{name}.__init__", kind.__init__


@pytest.mark.parametrize("name", public_classes())
def test_every_public_name_has_an_entry_and_each_field_a_meaning(name: str) -> None:
    kind = getattr(dure, name)
    assert inspect.getdoc(kind), f"{name} has no docstring of its own"
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert f"](#{name.lower()})" in page
    if is_dataclass(kind):
        comments = generator().field_comments(kind)
        assert [each.name for each in fields(kind) if not comments.get(each.name)] == []


@pytest.mark.parametrize(
    ("name", "method"), [pytest.param(*each, id=each[0]) for each in methods()]
)
def test_every_public_method_says_its_arguments_its_result_and_its_errors(
    name: str, method: Any
) -> None:
    text = inspect.getdoc(method) or ""
    signature = inspect.signature(method)
    named = set(re.findall(r"[a-z_]+", text))
    assert [each for each in signature.parameters if each not in {"self", *named}] == []
    assert re.search(r"\bRaises\b", text), "which errors?"
    returns = str(signature.return_annotation)
    if "NDArray" in returns:
        assert re.search(r"\([a-z_()]+, [a-z_]+\)", text), "which shape?"
    if returns not in ("None", str(inspect.Parameter.empty)):
        assert re.search(r"\bReturns\b", text), "what comes back?"


def variables() -> set[str]:
    """Every environment variable that the package reads, by the calls and tuples in its source."""
    found = set()
    asked = re.compile(r"environ|getenv|_is_on|for variable in")
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if not asked.search(text):
            continue  # what no line says, no part of the tree does
        tree = ast.parse(text)
        reads = {
            id(child)
            for node in ast.walk(tree)
            if isinstance(node, ast.Call | ast.Subscript | ast.For | ast.Compare)
            and asked.search(ast.unparse(node)[:400])
            for child in ast.walk(node)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) in reads:
                found |= {node.value} if re.fullmatch(r"[A-Z][A-Z0-9_]{3,}", node.value) else set()
    for path in (ROOT / "csrc").rglob("*"):
        if path.suffix in (".cpp", ".h"):
            found |= set(re.findall(r'getenv\("([A-Z_]+)"\)', path.read_text(encoding="utf-8")))
    return found - {"TRUE"}  # a value


def test_every_environment_variable_that_the_code_reads_is_explained() -> None:
    page = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^\| `([A-Z_]+)`", page, re.MULTILINE))
    read = variables()
    assert len(read) > 15
    assert explained - {"DURE_TEST_MODELS"} == read

"""The file of `dure serve --config`: TOML with the flags' names, and a table for each model.

host = "0.0.0.0"
api-key-file = "/etc/dure/keys"

[[model]]
name = "qwen3:8b"
alias = ["gpt-4"]
context = 16384
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dure.cli import console
from dure.errors import InvalidRequestError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TABLE = "model"
_NOT_IN_A_FILE = ("config", "yes")
_LEAST = {"context": 1, "threads": 1, "keep_alive": -1}


@dataclass(frozen=True)
class ModelOptions:
    """What a table says of one model; None is what holds for all."""

    name: str = ""
    alias: tuple[str, ...] = ()
    context: int | None = None
    quantize: str | None = None
    cache: str | None = None
    cache_gb: float | None = None
    memory: str | None = None
    speculate: str | None = None
    draft: str | None = None
    threads: int | None = None
    keep_alive: float | None = None


@dataclass(frozen=True)
class ServeConfig:
    """A file's options by the names of `command`'s parameters, and its models' own."""

    options: Mapping[str, Any]
    models: tuple[ModelOptions, ...] = ()


def read_config(path: Path, known: Sequence[str]) -> ServeConfig:
    """Read the file. known: the parameters of `dure serve`.

    Its models are those of `models`, then those of the tables.
    Raises InvalidRequestError for what is no TOML, and for a name or type that is wrong.
    """
    try:
        data = tomllib.loads(console.read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise InvalidRequestError(f"{path} is no TOML: {error}.") from None
    tables = data.pop(TABLE, [])
    allowed = [name for name in known if name not in _NOT_IN_A_FILE]
    options: dict[str, Any] = {}
    for key, value in data.items():
        name = _known(key, [*allowed, TABLE], path, "dure serve")
        if isinstance(value, dict) or (isinstance(value, list) and _nested(value)):
            raise _wrong(path, key, "a table", "a value")
        if name in options:
            raise InvalidRequestError(f"{path}: {name.replace('_', '-')} is there twice.")
        options[name] = value
    if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
        raise InvalidRequestError(f"{path}: a model is a table.", hint='[[model]], name = "…"')
    models = tuple(_model(table, path) for table in tables)
    own = [model.name for model in models]
    twice = next((name for name in own if own.count(name) > 1), None)
    if twice is not None:
        raise InvalidRequestError(f"{path}: {twice!r:.60} has two tables.", hint="make them one")
    names = [*_listed(options.get("models")), *own]
    if names:
        options["models"] = list(dict.fromkeys(names))
    return ServeConfig(options, models)


def fitted(options: Mapping[str, Any], parameters: Iterable[Any], path: Path) -> dict[str, Any]:
    """Return the options as their parameters (click's) take them: a lone value as a list of one.

    Raises InvalidRequestError for a type that would be read as something else.
    """
    kinds = {each.name: each for each in parameters}
    made: dict[str, Any] = {}
    for name, value in options.items():
        shown, parameter = name.replace("_", "-"), kinds[name]
        if parameter.nargs == -1 or parameter.multiple:
            made[name] = _listed(value)
            if not all(isinstance(each, str) for each in made[name]):
                raise _wrong(path, shown, repr(value), "a text, or a list of texts")
            continue
        if not isinstance(value, (str, int, float)):
            raise _wrong(path, shown, repr(value), "one text or number")
        if isinstance(value, bool) != parameter.is_flag:
            wanted = "true or false" if parameter.is_flag else "no switch"
            raise _wrong(path, shown, repr(value), wanted)
        made[name] = value
    return made


def _model(table: Mapping[str, Any], path: Path) -> ModelOptions:
    kinds = {each.name: str(each.type) for each in fields(ModelOptions)}
    made: dict[str, Any] = {}
    for key, value in table.items():
        name = _known(key, list(kinds), path, "a model")
        kind = kinds[name]
        if kind.startswith("tuple"):
            listed = _listed(value)
            if not all(isinstance(each, str) for each in listed):
                raise _wrong(path, key, repr(value), "a text, or a list of texts")
            made[name] = tuple(listed)
            continue
        wanted: tuple[type, ...] = (int,) if kind.startswith("int") else (int, float)
        wanted = (str,) if kind.startswith("str") else wanted
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise _wrong(path, key, repr(value), "a text" if wanted == (str,) else "a number")
        made[name] = value
    if not made.get("name"):
        raise InvalidRequestError(f"{path}: a model has no name.", hint='name = "qwen3:8b"')
    for name, least in _LEAST.items():
        if not made.get(name, least) >= least:
            raise _wrong(path, name, repr(made[name]), f"{least} or more")
    if made.get("cache") not in (None, *(each.value for each in console.Cache)):
        raise _wrong(path, "cache", repr(made["cache"]), "f16 or q8")
    return ModelOptions(**made)


def _known(key: str, names: Sequence[str], path: Path, what: str) -> str:
    """Return a key as the parameter that it names. Raises InvalidRequestError."""
    name = key.replace("-", "_")
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1)
    raise InvalidRequestError(
        f"{path}: {key!r:.60} is no option of {what}.",
        hint=f"did you mean {near[0].replace('_', '-')}?" if near else "dure serve --help",
    )


def _wrong(path: Path, key: str, value: str, wanted: str) -> InvalidRequestError:
    return InvalidRequestError(f"{path}: {key} is {wanted}, not {value:.60}.")


def _listed(value: object) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _nested(values: Sequence[object]) -> bool:
    return any(isinstance(each, (dict, list)) for each in values)

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
from collections.abc import Mapping, Sequence
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

    def of(self, name: str) -> ModelOptions:
        """Return the options of the model that is served by that name."""
        return next((each for each in self.models if each.name == name), ModelOptions(name))


def read_config(path: Path, known: Sequence[str]) -> ServeConfig:
    """Read the file. known: the parameters of `dure serve`.

    Its models are those of `models`, then those of the tables; aliases of tables are aliases.
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
        options[name] = value
    if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
        raise InvalidRequestError(f"{path}: a model is a table.", hint='[[model]], name = "…"')
    models = tuple(_model(table, path) for table in tables)
    names = [*_listed(options.get("models")), *(model.name for model in models)]
    if names:
        options["models"] = list(dict.fromkeys(names))
    aliases = [f"{alias}={model.name}" for model in models for alias in model.alias]
    if aliases:
        options["alias"] = [*_listed(options.get("alias")), *aliases]
    return ServeConfig(options, models)


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

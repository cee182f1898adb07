"""The models of dure serve: how each of them is loaded, by the options and by its own table."""

# ruff: noqa: PLC0415 - the kernels are loaded when the verb runs, not for its --help

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dure.cli import console
from dure.cli.serve_config import ModelOptions
from dure.errors import InvalidRequestError

if TYPE_CHECKING:
    from dure.weights.quantize import Scheme

MAX_CACHE_GB = 1_000_000


@dataclass(frozen=True)
class LoadOptions:
    """Arguments of LLM, by their names there."""

    threads: int | None
    context: int | None
    quantize: Scheme | None
    exact: bool
    cache_dtype: str
    cache_bytes: int | None
    speculate: str
    memory: int | None
    ray: str | None
    stages: int | str
    replicas: int
    max_sequences: int
    conversations: int


@dataclass(frozen=True)
class ServedModels:
    """The models that are served by name, with what holds for all and what for one of them."""

    names: tuple[str, ...]
    usual: LoadOptions
    tables: tuple[ModelOptions, ...]  # of a configuration file, of these names
    own: Mapping[str, Mapping[str, Any]]  # by name: the fields of `usual` that its table sets

    @classmethod
    def of(
        cls, names: tuple[str, ...], usual: LoadOptions, tables: Iterable[ModelOptions]
    ) -> ServedModels:
        """Read the tables; those of models that are not served are left out.

        Raises InvalidRequestError.
        """
        served = tuple(table for table in tables if table.name in names)
        return cls(names, usual, served, {table.name: _own_options(table) for table in served})

    def options_of(self, name: str) -> LoadOptions:
        """Return how the model is loaded."""
        return replace(self.usual, **self.own.get(name, {}))

    @property
    def aliases(self) -> tuple[tuple[str, str], ...]:
        """The other names in tables, as (alias, name)."""
        from dure.server.run import shown

        return tuple((alias, shown(each.name)) for each in self.tables for alias in each.alias)

    @property
    def keep_alives(self) -> tuple[tuple[str, float], ...]:
        """The tables' own keep_alive, as (name, seconds)."""
        return tuple(
            (each.name, each.keep_alive) for each in self.tables if each.keep_alive is not None
        )


def _own_options(table: ModelOptions) -> dict[str, Any]:
    """Return the fields of LoadOptions that a model's table gives. Raises InvalidRequestError."""
    from dure.loading.memory import check_memory
    from dure.weights.quantize import check_scheme

    memory = console.memory_budget(table.memory)
    guessing = None
    if table.speculate is not None or table.draft is not None:
        guessing = console.speculation(table.speculate, table.draft)
    options = {
        "threads": table.threads,
        "context": table.context,
        "quantize": None if table.quantize is None else check_scheme(table.quantize),
        "cache_dtype": table.cache,
        "cache_bytes": cache_bytes(table.cache_gb),
        "speculate": guessing,
        "memory": None if memory is None else check_memory(memory),
    }
    return {key: value for key, value in options.items() if value is not None}


def cache_bytes(gigabytes: float | None) -> int | None:
    """Convert --cache-gb to bytes. Raises InvalidRequestError, also for nan and infinity."""
    if gigabytes is None:
        return None
    if not 0.001 <= gigabytes <= MAX_CACHE_GB:
        raise InvalidRequestError(
            f"--cache-gb must be from 0.001 to {MAX_CACHE_GB:,}, but is {gigabytes:g}.",
            hint="leave it out to use half of the free memory",
        )
    return round(gigabytes * 1e9)

"""The tensors of a quantised folder while matrices are put together, and its settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dure.errors import ModelFileError, UnsupportedModelError

if TYPE_CHECKING:
    from dure.formats.quantized.base import QuantizedMatrix
    from dure.formats.tensors import TensorInfo

# What runtimes quantise activations and caches with. dure quantises activations itself, in blocks
# of 32 with a scale each, and the cache by its own options.
_ACTIVATIONS = (
    ".input_scale",
    ".input_zero_point",
    ".input_scale_2",
    ".input_zero_point_2",
    ".input_global_scale",
    ".activation_scale",
)
_CACHE = (
    ".output_scale",
    ".output_zero_point",
    ".q_scale",
    ".k_scale",
    ".v_scale",
    ".k_zero_point",
    ".v_zero_point",
)
_RUNTIME = (*_ACTIVATIONS, *_CACHE)


def unused_scales(names: Iterable[str]) -> dict[str, list[str]]:
    """Return what a folder has of other runtimes' static scales, which dure does not use.

    names: of its tensors. Returns "activations" and "cache" -> the last parts of such names; only
    those that there are. Ascend calls a zero point `input_offset`.
    """
    kinds = {"activations": (*_ACTIVATIONS, ".input_offset"), "cache": _CACHE}
    ends = {f".{name.rpartition('.')[2]}" for name in names}
    found = {what: sorted(end[1:] for end in known if end in ends) for what, known in kinds.items()}
    return {what: listed for what, listed in found.items() if listed}


MAX_SIZE = 1 << 31
"""Columns of a group, rows of a block: as many as no matrix has, and few enough to reckon with."""


class QuantizedFolder:
    """Takes tensors of a folder and keeps the matrices that are made of them."""

    def __init__(
        self, tensors: dict[str, TensorInfo], settings: Mapping[str, Any], where: str
    ) -> None:
        """settings: config.json's quantization_config. where: what errors call it."""
        self.tensors = tensors
        self.settings = settings
        self.where = where
        self.found: dict[str, QuantizedMatrix] = {}
        self.plain = False  # whether the settings say that weights are stored as floats

    def ending(self, suffix: str) -> list[tuple[str, TensorInfo]]:
        """Return the tensors whose names end in `suffix`, each with the name before it."""
        return [(n.removesuffix(suffix), t) for n, t in self.tensors.items() if n.endswith(suffix)]

    def take(self, name: str, of: str) -> TensorInfo:
        """Remove and return a tensor that must stand beside `of`; ModelFileError without it."""
        tensor = self.optional(name)
        if tensor is None:
            raise ModelFileError(f"{self.where}: {of} is quantised, but there is no {name}.")
        return tensor

    def optional(self, name: str) -> TensorInfo | None:
        """Remove and return a tensor, or return None."""
        return self.tensors.pop(name, None)

    def add(self, matrix: QuantizedMatrix) -> None:
        """Keep a finished matrix; ModelFileError if its name is taken."""
        if matrix.name in self.tensors or matrix.name in self.found:
            raise ModelFileError(
                f"{self.where}: {matrix.name} is stored twice, quantised and as it is."
            )
        self.found[matrix.name] = matrix

    def result(self) -> dict[str, TensorInfo | QuantizedMatrix]:
        """Return all parameters by name, without tensors that only other runtimes need."""
        left = {n: t for n, t in self.tensors.items() if not n.endswith(_RUNTIME)}
        return {**left, **self.found}

    def integer(self, key: str, default: int) -> int:
        """Return the integer at `key` of the settings. Raises ModelFileError for anything else."""
        value = self.settings.get(key, default)
        if type(value) is not int:
            raise ModelFileError(f"{self.where} has {key} = {value!r:.60}; it must be a number.")
        return value

    def expect(self, key: str, value: Any, *allowed: Any) -> None:
        """Raise UnsupportedModelError unless the value is one of `allowed`."""
        if value not in allowed:
            raise UnsupportedModelError(
                f"{self.where} has {key} = {value!r:.60}, which dure does not read; "
                f"it reads {' or '.join(repr(a) for a in allowed if a is not None)}."
            )

    def block(self, key: str, value: Any) -> tuple[int, int] | None:
        """Read the two sizes of a block of weights that share a scale; None if none are given."""
        if value is None:
            return None
        sizes = value if isinstance(value, list) else []
        if len(sizes) != 2 or any(
            type(size) is not int or not 1 <= size <= MAX_SIZE for size in sizes
        ):
            raise ModelFileError(f"{self.where} has {key} = {value!r:.60}; it must be two sizes.")
        return sizes[0], sizes[1]

    def group_sizes(self, overrides: str) -> list[int]:
        """Read the group sizes of the settings: `group_size`, then those of the table `overrides`.

        The table has a table for each module. Raises ModelFileError for a size that is neither -1
        nor a number above 0, and for one beyond MAX_SIZE.
        """
        first = self.settings.get("group_size", self.settings.get("q_group_size", 128))
        found = [first, *self._overriding(overrides, "group_size")]
        for size in found:
            if type(size) is not int or (size != -1 and not 1 <= size <= MAX_SIZE):
                raise ModelFileError(
                    f"{self.where} has group_size = {size!r:.60}; it must be -1 or a number above "
                    f"0, at most {MAX_SIZE:,}."
                )
        return list(dict.fromkeys(found))

    def bits(self, overrides: str, *allowed: int) -> list[int]:
        """Read the bits of the settings, then those of the table `overrides`.

        16 bits mean plain floats, and are left out. Raises UnsupportedModelError for a number of
        bits that is not one of `allowed`.
        """
        found = [self.integer("bits", 4)]
        found += [bits for bits in self._overriding(overrides, "bits") if bits != 16]
        for bits in found:
            self.expect("bits", bits, *allowed)
        return list(dict.fromkeys(found))

    def _overriding(self, overrides: str, key: str) -> list[Any]:
        """Return the values at `key` of the modules' tables in the table `overrides`."""
        modules = self.settings.get(overrides)
        if modules is not None and not isinstance(modules, dict):
            raise ModelFileError(f"{self.where} has {overrides} that is not a table.")
        tables = [each for each in (modules or {}).values() if isinstance(each, dict)]
        return [each[key] for each in tables if each.get(key) is not None]

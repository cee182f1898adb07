"""Rotary position embedding: the frequencies of every supported scaling, from any config form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dure.errors import ModelFileError, UnsupportedModelError
from dure.formats.context import TABLES, context_beside

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Rotation = tuple[Floats, Floats]

Float32Array = npt.NDArray[np.float32]

ROPE_TYPES = (
    "default",
    "linear",
    "dynamic",
    "yarn",
    "ntk-alpha",
    "llama3",
    "longrope",
    "proportional",
)

# Types that other software writes for one of ours. "mrope" gives image patches three positions;
# text has the same number in all three, which is ordinary rotation.
_SYNONYMS: Mapping[str, str] = {
    "none": "default",
    "mrope": "default",
    "ntk_alpha": "ntk-alpha",
    "su": "longrope",
}

# What a config may say beside its table of rope parameters.
_SHARED_KEYS = ("rope_theta", "partial_rotary_factor", "rotary_dim", "max_position_embeddings")
CONFIG_KEYS = (*TABLES, *_SHARED_KEYS, "original_max_position_embeddings")
"""All that `RopeConfig.from_hf` reads of a config."""


@dataclass(frozen=True)
class RopeConfig:
    """The RoPE settings of a layer: `dim` rotary dims of a head, base `theta`, and scaling.

    `original_context` (tokens) is the context of the first training; yarn and llama3 need it.
    """

    type: str
    theta: float
    dim: int
    factor: float = 1.0
    original_context: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    alpha: float | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    truncate: bool = True
    divisors: tuple[float, ...] = ()  # longrope's, one a frequency
    turning: int = 0  # proportional's: so many frequencies are those of `dim`, the others 0

    @classmethod
    def from_hf(
        cls,
        config: Mapping[str, Any],
        head_dim: int,
        *,
        layer_type: str | None = None,
        default_theta: float = 10000.0,
        partial: bool = True,
        fraction: float = 1.0,
    ) -> RopeConfig:
        """Read the RoPE settings of a config.json.

        It may have the old form (`rope_theta`, `rope_scaling`) or the new (`rope_parameters`, which
        may hold one table a `layer_type`). partial: whether the family may rotate a part of a head;
        those that do not pass over the keys of its size, as transformers does. fraction: the
        rotated part of a head where the config names none. Raises UnsupportedModelError for an
        unknown type, ModelFileError for a value that is not a number in range.
        """
        shared = {key: config[key] for key in _SHARED_KEYS if key in config}
        table = _Table({**shared, **_parameters(config, layer_type)})
        kind = _rope_type(table)
        longest = table.number("max_position_embeddings")
        key = "original_max_position_embeddings"
        beside = _Table({key: context_beside(config, kind)}).number(key)
        original = table.number(key) if beside is None else beside
        original = longest if original is None else original
        factor = table.number("factor")
        if factor is None and kind == "yarn" and original and longest:
            factor = longest / original  # DeepSeek writes no factor where the two lengths say it
        if kind in ("linear", "llama3", "yarn") and factor is None:
            raise ModelFileError(f"RoPE scaling {kind!r} in the config has no `factor`.")
        theta = table.number("rope_theta")
        divisors: tuple[float, ...] = ()
        if kind == "longrope":
            # Beyond the original context all positions have the long factors, so that the rotation
            # of a key does not depend on what comes after it.
            long = longest is not None and original is not None and longest > original
            divisors = table.numbers("long_factor" if long else "short_factor")
            if factor is None and longest and original:
                factor = longest / original
        if kind == "proportional":
            dim, part = head_dim, _rotary_part(table, fraction)
        elif partial:
            dim, part = _rotary_dim(table, head_dim, fraction), 0.0
        else:
            dim, part = _whole_dim(table, kind, head_dim), 0.0
        return cls(
            type=kind,
            theta=default_theta if theta is None else theta,
            dim=dim,
            factor=1.0 if factor is None else factor,
            original_context=int(original or 0),
            beta_fast=table.number("beta_fast") or 32.0,
            beta_slow=table.number("beta_slow") or 1.0,
            attention_factor=table.number("attention_factor"),
            mscale=table.number("mscale"),
            mscale_all_dim=table.number("mscale_all_dim"),
            alpha=table.number("alpha"),
            low_freq_factor=table.number("low_freq_factor") or 1.0,
            high_freq_factor=table.number("high_freq_factor") or 4.0,
            truncate=bool(table.values.get("truncate", True)),
            divisors=divisors,
            turning=int(part * head_dim // 2),
        )


def rope_frequencies(config: RopeConfig) -> tuple[Float32Array, float]:
    """Compute inverse frequencies and the multiplier of cos and sin.

    Returns float32 (dim / 2,), radians a token, and the multiplier. Raises UnsupportedModelError
    for an unknown type, ModelFileError for numbers that make no rotation.
    """
    _check(config)
    if config.type == "linear":
        return _plain(config.theta, config.dim) / np.float32(config.factor), 1.0
    if config.type == "ntk-alpha":
        return _plain(stretched_theta(config), config.dim), 1.0
    if config.type == "yarn":
        return _yarn(config), _yarn_multiplier(config)
    if config.type == "llama3":
        return _llama3(config), 1.0
    if config.type == "longrope":
        divisors = np.array(config.divisors, np.float32)
        frequencies = np.float32(1.0) / (divisors * _periods(config.theta, config.dim))
        return frequencies, _long_multiplier(config)
    if config.type == "proportional":
        frequencies = _plain(config.theta, config.dim) / np.float32(config.factor)
        frequencies[config.turning :] = 0
        return frequencies, 1.0
    return _plain(config.theta, config.dim), 1.0


def stretched_theta(config: RopeConfig) -> float:
    """Return the RoPE base, scaled by alpha for ntk-alpha.

    Unlike dynamic NTK scaling, it does not depend on the sequence's length.
    """
    if config.type != "ntk-alpha" or config.alpha is None:
        return config.theta
    return float(config.theta * config.alpha ** (config.dim / (config.dim - 2)))


def magnitude_scale(factor: float, weight: float = 1.0) -> float:
    """Compute YaRN's m(s, c): 1 for s <= 1, else 0.1 c ln s + 1. DeepSeek squares it for scores."""
    return 1.0 if factor <= 1.0 else 0.1 * weight * math.log(factor) + 1.0


def _plain(theta: float, dim: int) -> Float32Array:
    return np.float32(1.0) / _periods(theta, dim)


def _periods(theta: float, dim: int) -> Float32Array:
    """Compute theta^(2i/dim), rounded where float32 training code rounds.

    Models are trained with float32 frequencies; a different last bit turns a head by 0.006 radians
    at position 100,000, so the exponent and the power are each rounded to float32.
    """
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return np.power(theta, exponents.astype(np.float64)).astype(np.float32)


def _yarn(config: RopeConfig) -> Float32Array:
    periods = _periods(config.theta, config.dim)
    kept = np.float32(1.0) / periods
    stretched = np.float32(1.0) / (np.float32(config.factor) * periods)
    low = _turning_dim(config, config.beta_fast)
    high = _turning_dim(config, config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.dim - 1)
    if low == high:
        high += 0.001  # the ramp between them would divide by zero
    index = np.arange(config.dim // 2, dtype=np.float32)
    ramp = np.clip((index - np.float32(low)) / np.float32(high - low), 0, 1)
    keep = np.float32(1.0) - ramp
    blended: Float32Array = stretched * (np.float32(1.0) - keep) + kept * keep
    return blended


def _turning_dim(config: RopeConfig, turns: float) -> float:
    """Compute the dimension that makes `turns` full turns over the original context (YaRN)."""
    period = config.original_context / (turns * 2 * math.pi)
    return config.dim * math.log(period) / (2 * math.log(config.theta))


def _yarn_multiplier(config: RopeConfig) -> float:
    if config.attention_factor is not None:
        return config.attention_factor
    if config.mscale and config.mscale_all_dim:
        return magnitude_scale(config.factor, config.mscale) / magnitude_scale(
            config.factor, config.mscale_all_dim
        )
    return magnitude_scale(config.factor)


def _long_multiplier(config: RopeConfig) -> float:
    """Compute LongRoPE's multiplier (Ding et al. 2024, arXiv 2402.13753) of cos and sin."""
    if config.attention_factor is not None:
        return config.attention_factor
    if config.factor <= 1.0:
        return 1.0
    return math.sqrt(1 + math.log(config.factor) / math.log(config.original_context))


def _llama3(config: RopeConfig) -> Float32Array:
    plain = _plain(config.theta, config.dim)
    wavelength = np.float32(2 * math.pi) / plain  # tokens a turn
    low, high = config.low_freq_factor, config.high_freq_factor
    smooth = (np.float32(config.original_context) / wavelength - np.float32(low)) / np.float32(
        high - low
    )
    factor = np.float32(config.factor)
    blended = (np.float32(1.0) - smooth) * plain / factor + smooth * plain
    slow = wavelength > config.original_context / low
    fast = wavelength < config.original_context / high
    return np.where(slow, plain / factor, np.where(fast, plain, blended)).astype(np.float32)


def _check(config: RopeConfig) -> None:
    if config.type not in ROPE_TYPES:
        raise _unknown(config.type)
    # An odd number is rounded up to pairs, but YaRN's ramp has a place for each whole pair only.
    if config.dim < 1 or (config.dim % 2 and config.type == "yarn"):
        raise ModelFileError(f"RoPE needs an even number of rotary dims, not {config.dim}.")
    if not (math.isfinite(config.theta) and config.theta > 1.0):
        raise ModelFileError(f"RoPE needs a base (theta) above 1, not {config.theta}.")
    if not (math.isfinite(config.factor) and config.factor > 0.0):
        raise ModelFileError(f"RoPE needs a scaling factor above 0, not {config.factor}.")
    if config.type == "longrope":
        _check_divisors(config)
    if config.type in ("yarn", "llama3") and config.original_context <= 0:
        raise ModelFileError(f"RoPE type {config.type!r} needs the original context length.")
    if config.type == "yarn" and not (config.beta_fast > 0.0 and config.beta_slow > 0.0):
        raise ModelFileError("YaRN needs beta_fast and beta_slow above 0.")
    if config.type == "llama3" and not 0.0 < config.low_freq_factor < config.high_freq_factor:
        raise ModelFileError("llama3 RoPE needs 0 < low_freq_factor < high_freq_factor.")
    if config.type == "ntk-alpha" and not (config.alpha and config.alpha > 0.0 and config.dim > 2):
        raise ModelFileError("NTK-alpha RoPE needs an alpha above 0 and more than 2 rotary dims.")


def _check_divisors(config: RopeConfig) -> None:
    if len(config.divisors) != config.dim // 2 or any(each <= 0 for each in config.divisors):
        raise ModelFileError(
            f"LongRoPE needs {config.dim // 2} factors above 0 of {config.dim} rotary dims, "
            f"not {len(config.divisors)}."
        )
    if config.attention_factor is None and config.factor > 1.0 and config.original_context <= 1:
        raise ModelFileError("LongRoPE needs an original context of more than one token.")


def _parameters(config: Mapping[str, Any], layer_type: str | None) -> dict[str, Any]:
    for key in TABLES:
        parameters = config.get(key)
        if parameters is None:
            continue
        if not isinstance(parameters, Mapping):
            raise ModelFileError(f"`{key}` in the config is {parameters!r}, not an object.")
        kinds = {name: value for name, value in parameters.items() if isinstance(value, Mapping)}
        if not kinds:
            return dict(parameters)
        if layer_type not in kinds:
            raise UnsupportedModelError(
                f"`{key}` in the config has no table for layers of kind {layer_type!r}.",
                hint=f"It has: {', '.join(sorted(kinds))}.",
            )
        return dict(kinds[layer_type])
    return {}


def _rope_type(table: _Table) -> str:
    written = table.text("rope_type") or table.text("type") or "default"
    if written == "dynamic":
        # With alpha it is HunYuan's fixed stretch. Without, it changes no frequency until a
        # sequence outgrows max_position_embeddings, which is where our context ends.
        return "ntk-alpha" if table.number("alpha") else "dynamic"
    kind = _SYNONYMS.get(written, written)
    if kind not in ROPE_TYPES:
        raise _unknown(written)
    return kind


def _rotary_dim(table: _Table, head_dim: int, usual: float = 1.0) -> int:
    fraction, rotary_dim = table.number("partial_rotary_factor"), table.number("rotary_dim")
    if fraction is not None:
        rotary_dim = head_dim * fraction
    dims = head_dim * usual if rotary_dim is None else rotary_dim
    if not 1 <= dims < head_dim + 1:  # before it is an integer, which infinity cannot be
        raise ModelFileError(f"The config rotates {dims:g} of {head_dim} dims of a head.")
    return int(dims)


def _rotary_part(table: _Table, usual: float) -> float:
    """Return which part of a head's frequencies turns, 0 to 1, of a proportional rotation."""
    fraction = table.number("partial_rotary_factor")
    part = usual if fraction is None else fraction
    if not 0 <= part <= 1:
        raise ModelFileError(f"The config has partial_rotary_factor = {part}; it is from 0 to 1.")
    return part


def _whole_dim(table: _Table, kind: str, head_dim: int) -> int:
    """Return head_dim, of a family whose classes rotate whole heads whatever the config says.

    Scalings are computed of the part that the config names, which then fits no head: such a config
    is refused, as nobody runs it.
    """
    if kind not in ("default", "dynamic") and _rotary_dim(table, head_dim) != head_dim:
        raise UnsupportedModelError(
            f"The config scales (RoPE type {kind!r}) the rotation of a part of each head, by "
            "partial_rotary_factor or rotary_dim; models of this family rotate whole heads."
        )
    _rotary_dim(table, head_dim)
    return head_dim


def _unknown(written: str) -> UnsupportedModelError:
    known = ", ".join(ROPE_TYPES)
    return UnsupportedModelError(f"RoPE type {written!r} is not known.", hint=f"Known: {known}.")


@dataclass(frozen=True)
class _Table:
    """Typed reads of a table of RoPE parameters."""

    values: Mapping[str, Any]

    def number(self, key: str) -> float | None:
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ModelFileError(f"`{key}` in the config is {value!r}, not a number.")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise ModelFileError(f"`{key}` in the config is not a finite number.")
        return number

    def numbers(self, key: str) -> tuple[float, ...]:
        values = self.values.get(key)
        if not isinstance(values, list | tuple):
            raise ModelFileError(f"`{key}` in the config is not a list of numbers.")
        found = [_Table({key: each}).number(key) for each in values]
        if any(each is None for each in found):
            raise ModelFileError(f"`{key}` in the config holds what is no number.")
        return tuple(each for each in found if each is not None)

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            raise ModelFileError(f"`{key}` in the config is {value!r}, not a string.")
        return value


_ROPE_STEP = 1024  # positions whose angles are computed at a time


class Rope:
    """The cos and sin of positions.

    They are computed once a model in fixed pieces, so that those of a position have the same bits
    in every batch.
    """

    def __init__(self, config: RopeConfig, *, factors: Floats | None = None) -> None:
        """factors: (r/2,), divisors of the frequencies: GGUF files store llama3's scaling so."""
        frequencies, self._multiplier = rope_frequencies(config)
        if factors is not None and not (np.isfinite(factors) & (factors > 0)).all():
            raise ModelFileError("The model's rope_freqs holds factors that are not above 0.")
        self._frequencies = frequencies if factors is None else frequencies / factors
        self._cos: Floats = np.empty((0, len(frequencies)), np.float32)
        self._sin = self._cos

    def __call__(self, positions: NDArray[np.int32]) -> Rotation:
        """Return cos and sin, each (n, r/2), of positions (n,)."""
        while len(self._cos) <= positions.max(initial=0):
            start = len(self._cos)
            steps = np.arange(start, start + _ROPE_STEP, dtype=np.float32)
            angles = steps[:, None] * self._frequencies
            scale = np.float32(self._multiplier)
            self._cos = np.concatenate([self._cos, np.cos(angles) * scale])
            self._sin = np.concatenate([self._sin, np.sin(angles) * scale])
        return self._cos[positions], self._sin[positions]

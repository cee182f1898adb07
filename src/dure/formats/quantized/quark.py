"""AMD Quark's folders, as `export_safetensors` writes them and transformers loads them.

A module X has X.weight, X.weight_scale, perhaps X.weight_zero_point, and in formats of two stages
X.weight_scale_2. The types and shapes of these say the layout; what they leave open (signs, floats
of 6 bits) the specs of quantization_config say. Its definitions: quark/torch/utils/pack.py and
quark/torch/export/nn/modules/realquantizer.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dure.errors import ModelFileError, UnsupportedModelError
from dure.formats.quantized.byte_codes import ByteMatrix
from dure.formats.quantized.fp8 import Fp8Matrix
from dure.formats.quantized.mxfp4 import Mxfp4Matrix
from dure.formats.quantized.mxfp6 import Mxfp6Matrix
from dure.formats.quantized.nvfp4 import Nvfp4Matrix
from dure.formats.quantized.quark_words import QuarkColumns, QuarkRows
from dure.formats.quantized.rare_fours import Fp4E5m3Matrix
from dure.formats.tensors import shown

if TYPE_CHECKING:
    from dure.formats.quantized.base import QuantizedMatrix
    from dure.formats.quantized.folder import QuantizedFolder
    from dure.formats.tensors import TensorInfo

# The types of a weight's stages: two are either a type and that of its scales, or one after
# the other.
_READ = (
    ("fp8_e4m3",),
    ("int8",),
    ("uint8",),
    ("int4",),
    ("uint4",),
    ("fp4",),
    ("fp6_e2m3",),
    ("fp6_e3m2",),
    ("fp4", "e5m3"),
    ("fp4", "fp8_e4m3"),
    ("fp8_e4m3", "int4"),
)
_MX = ("fp4", "fp6_e2m3", "fp6_e3m2")
_CONFIGS = ("layer_quant_config", "layer_type_quant_config", "kv_cache_quant_config")
# What a rotation leaves in a module that turns its inputs while it runs.
_ROTATIONS = (".input_rotation", ".input_prescale")
_IDLE = ("weight_zero_point_2", "input_scale_2", "input_zero_point_2", "output_zero_point")


@dataclass(frozen=True)
class _Spec:
    """What the config says of some modules' weights."""

    types: tuple[str, ...]  # of each stage
    block: tuple[int, int] | None


def read_quark(folder: QuantizedFolder) -> None:
    """Put together every module that Quark quantised.

    Raises UnsupportedModelError for a type that is not read, ModelFileError for tensors that do not
    fit the config.
    """
    specs = list(_specs(folder))
    for name in folder.tensors:
        if name.endswith(_ROTATIONS) or ".shared_input_rotation_" in f".{name}":
            raise UnsupportedModelError(
                f"{folder.where} rotates activations while it runs ({shown(name)}), which dure "
                "does not do.",
                hint="quantise the model without online rotations.",
            )
    export = folder.settings.get("export")
    export = export if isinstance(export, Mapping) else {}
    packing = export.get("pack_method", "reorder")
    folder.expect("pack_method", packing, "reorder", "order")
    form = export.get("weight_format", "real_quantized")
    folder.expect("weight_format", form, "real_quantized", "fake_quantized")
    folder.plain = form == "fake_quantized"  # the weights are floats, rounded to what they would be
    for base, scales in folder.ending(".weight_scale"):
        del folder.tensors[scales.name]
        zeros = folder.optional(f"{base}.weight_zero_point")
        second = folder.optional(f"{base}.weight_scale_2")
        for each in _IDLE:
            folder.optional(f"{base}.{each}")
        if folder.plain:
            continue
        codes = folder.take(f"{base}.weight", scales.name)
        folder.add(_matrix(folder, specs, codes, (scales, second, zeros), packing == "reorder"))


def _specs(folder: QuantizedFolder) -> Iterator[_Spec]:
    """Yield what the config says of weights, everywhere that it says so."""
    configs: list[Any] = [folder.settings.get("global_quant_config")]
    for key in _CONFIGS:
        table = folder.settings.get(key) or {}
        if not isinstance(table, Mapping):
            raise ModelFileError(f"{folder.where} has {key} that is not a table.")
        configs += table.values()
    for config in configs:
        if config is None:
            continue
        if not isinstance(config, Mapping):
            raise ModelFileError(f"{folder.where} has a quant_config that is not a table.")
        weight = config.get("weight")
        if weight is not None:
            yield _spec(folder, weight)


def _spec(folder: QuantizedFolder, weight: object) -> _Spec:
    """Read one spec, of one stage or a list of two; raise for a type that is not read."""
    stages: list[Any] = weight if isinstance(weight, list) else [weight]
    if not stages or not all(isinstance(each, Mapping) for each in stages):
        raise ModelFileError(f"{folder.where} has weight = {weight!r:.60}; it must be a table.")
    types = tuple(str(each.get("dtype")) for each in stages)
    scales = stages[0].get("scale_format")
    named = " and ".join(types)
    if types == ("fp4",) and scales == "e5m3":
        types = ("fp4", "e5m3")  # amdfp4
    elif len(types) == 1 and types[0] in _MX and scales != "e8m0":
        named, types = f"{named} with scales of {scales!s:.20}", ()
    if types not in _READ:
        raise UnsupportedModelError(
            f"{folder.where} has weights of AMD Quark's {named:.80}, which dure does not read.",
            hint="it reads fp8_e4m3, int8, uint8, int4, uint4, mxfp4, mxfp6, nvfp4, amdfp4 and "
            "int4_fp8.",
        )
    return _Spec(types, folder.block("block_size", stages[0].get("block_size")))


def _matrix(
    folder: QuantizedFolder,
    specs: list[_Spec],
    codes: TensorInfo,
    parts: tuple[TensorInfo, TensorInfo | None, TensorInfo | None],
    reorder: bool,
) -> QuantizedMatrix:
    """Put one matrix together. parts: scales, those of the second stage, and zero points."""
    scales, second, zeros = parts
    kinds = codes.dtype, scales.dtype
    if kinds[0] == "F8_E4M3":
        block = next((spec.block for spec in specs if spec.block is not None), None)
        return Fp8Matrix(codes.name, codes, scales, block)
    if kinds == ("U8", "F8_E4M3") and second is not None:
        return Nvfp4Matrix(codes.name, codes, scales, second)
    if kinds == ("U8", "U8"):
        width, groups = (part.shape[-1] if part.shape else 0 for part in (codes, scales))
        if width == 8 * groups:
            return Fp4E5m3Matrix(codes.name, codes, scales)
        if width == 16 * groups:
            stages = _one_of(folder, specs, codes, ("fp4",), ("fp4", "e5m3"))
            make = Mxfp4Matrix if stages == ("fp4",) else Fp4E5m3Matrix
            return make(codes.name, codes, scales)
        [form] = _one_of(folder, specs, codes, ("fp6_e2m3",), ("fp6_e3m2",))
        return Mxfp6Matrix(codes.name, codes, scales, form.removeprefix("fp6_"))
    if kinds[0] in ("I8", "U8"):
        signed = kinds[0] == "I8"
        stored = f"QUARK-{'' if signed else 'U'}INT8"
        if len(scales.shape) == 2:
            return QuarkColumns(codes.name, stored, codes, scales, zeros, bits=8, signed=signed)
        return ByteMatrix(codes.name, stored, codes, scales, zeros)
    if kinds[0] != "I32":
        raise UnsupportedModelError(
            f"{folder.where} has {shown(codes.name)} as {' under '.join(kinds)}, which dure does "
            "not read of AMD Quark.",
        )
    if second is not None:
        return QuarkRows(codes, second, None, signed=True, reorder=reorder, factor=scales)
    [form] = _one_of(folder, specs, codes, ("int4",), ("uint4",))
    signed = form == "int4"
    if len(scales.shape) == 2:
        return QuarkColumns(
            codes.name,
            f"QUARK-{form.upper()}",
            codes,
            scales,
            zeros,
            bits=4,
            signed=signed,
            reorder=reorder,
        )
    return QuarkRows(codes, scales, zeros, signed=signed, reorder=reorder)


def _one_of(
    folder: QuantizedFolder, specs: list[_Spec], codes: TensorInfo, *types: tuple[str, ...]
) -> tuple[str, ...]:
    """Return which of `types` the config has; raise if it has none, or several."""
    found = [each for each in types if any(spec.types == each for spec in specs)]
    named = " or ".join(" and ".join(each) for each in types)
    if not found:
        raise ModelFileError(
            f"{folder.where} says of no module that its weights are {named}, but "
            f"{shown(codes.name)} is {codes.dtype} {codes.shape}.",
            hint="config.json may be of another version of the model.",
        )
    if len(found) > 1:
        raise UnsupportedModelError(
            f"{folder.where} has modules of {named.replace(' or ', ' and of ')}, which "
            f"{shown(codes.name)} does not tell apart.",
            hint="use one of the two for all modules.",
        )
    return found[0]

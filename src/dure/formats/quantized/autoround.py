"""AutoRound's own folders, which `packing_format` says the layout of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dure.errors import ModelFileError, UnsupportedModelError
from dure.formats.quantized.awq import add_awq
from dure.formats.quantized.compressed_tensors import add_float_forms
from dure.formats.quantized.gptq import add_gptq
from dure.formats.quantized.rare_fours import Fp4E5m3Matrix, Mxint4Matrix
from dure.formats.tensors import shown

if TYPE_CHECKING:
    from dure.formats.quantized.folder import QuantizedFolder

_MXINT, _E5M3 = "mx_int", "nvfp4_v2"
_INTEGERS = ("int", "int_sym", "int_asym")
_FLOATS = ("nv_fp", "mx_fp", "fp", "float", "fp8", "fp8_sym")
_DATA_TYPES = (*_INTEGERS, *_FLOATS, _MXINT, _E5M3)


_BY_TENSORS = ("llm_compressor", "llm_compressor_nvfp4_e5m3", "fp8_static")


def read_autoround(folder: QuantizedFolder) -> None:
    """Put together the modules of a folder whose quant_method is auto-round.

    `extra_config` gives modules other bits or group sizes, by names or patterns: what the tensors'
    shapes say. Modules of 16 bits are plain floats.
    """
    packing = folder.settings.get("packing_format", "auto_round:auto_gptq")
    extra = folder.settings.get("extra_config") or {}
    if not isinstance(packing, str) or not isinstance(extra, dict):
        raise ModelFileError(
            f"{folder.where} has a packing_format that is no text, or an extra_config that is not "
            "a table."
        )
    modules = [each for each in extra.values() if isinstance(each, dict)]
    for each in (folder.settings, *modules):
        kind = each.get("data_type", "int")
        if kind not in _DATA_TYPES and each.get("bits") != 16:
            raise UnsupportedModelError(
                f"{folder.where} has data_type = {shown(str(kind))}, a form of AutoRound that dure "
                "does not read.",
                hint=f"it reads {', '.join(_DATA_TYPES)}.",
            )
    form = packing.removeprefix("auto_round").lstrip(":") or "auto_round"
    known = ("auto_gptq", "auto_round", "gptqmodel", "auto_awq", *_BY_TENSORS)
    folder.expect("packing_format", form, *known)
    _add_rare(folder, {str(each.get("data_type", "int")) for each in (folder.settings, *modules)})
    add_float_forms(folder, None)
    if form == "auto_awq":
        add_awq(folder, "extra_config")
    elif form not in _BY_TENSORS:
        add_gptq(folder, "extra_config", lowered=form == "auto_gptq")


def _add_rare(folder: QuantizedFolder, kinds: set[str]) -> None:
    """Put together the modules of MXINT4, and of e2m1 under e5m3; both are named as MXFP4's are."""
    if not kinds & {_MXINT, _E5M3}:
        return
    if len(kinds - {*_INTEGERS}) > 1:
        raise UnsupportedModelError(
            f"{folder.where} has modules of {' and of '.join(sorted(kinds))}, which AutoRound's "
            "tensors do not tell apart.",
            hint="use one of the two for all modules.",
        )
    for base, codes in folder.ending(".weight_packed"):
        del folder.tensors[codes.name]
        scales = folder.take(f"{base}.weight_scale", codes.name)
        make = Mxint4Matrix if _MXINT in kinds else Fp4E5m3Matrix
        folder.add(make(f"{base}.weight", codes, scales))

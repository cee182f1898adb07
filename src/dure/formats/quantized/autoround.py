"""AutoRound's own folders, which `packing_format` says the layout of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dure.errors import ModelFileError, UnsupportedModelError
from dure.formats.quantized.awq import add_awq
from dure.formats.quantized.compressed_tensors import add_float_forms
from dure.formats.quantized.gptq import add_gptq
from dure.formats.tensors import shown

if TYPE_CHECKING:
    from dure.formats.quantized.folder import QuantizedFolder

_DATA_TYPES = ("int", "int_sym", "int_asym", "nv_fp", "mx_fp", "fp", "float", "fp8", "fp8_sym")


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
                hint=f"it reads {', '.join(_DATA_TYPES[:4])} and fp.",
            )
    form = packing.removeprefix("auto_round").lstrip(":") or "auto_round"
    known = ("auto_gptq", "auto_round", "gptqmodel", "auto_awq", "llm_compressor", "fp8_static")
    folder.expect("packing_format", form, *known)
    add_float_forms(folder, None)
    if form == "auto_awq":
        add_awq(folder, "extra_config")
    elif form not in ("llm_compressor", "fp8_static"):
        add_gptq(folder, "extra_config", lowered=form == "auto_gptq")

"""Quantises rows of floats, and decides which part of a model gets which type."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Literal, get_args

from dure import kernels
from dure.errors import InvalidRequestError, ModelFileError
from dure.formats.blocks import AS_INTEGERS, BLOCKS, FLOATS
from dure.formats.expert_file import PackedExperts
from dure.formats.quantized.base import QuantizedMatrix

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dure.formats.checkpoint import Checkpoint
    from dure.formats.quantized_checkpoint import Parameter

_ROUTER = re.compile(r".*\.(gate|shared_expert_gate)\.weight")

Scheme = Literal["q8", "q6", "q4"]
Part = Literal["embedding", "head", "attention", "dense", "experts", "router", "vector"]

SCHEMES: tuple[Scheme, ...] = get_args(Scheme)

# The type to use instead if a type's blocks do not divide a row: more bits, in smaller blocks.
_SMALLER_BLOCKS: Mapping[str, str] = {
    **{"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"},
    **dict.fromkeys(("Q8_0", "Q5_0", "Q5_1", "IQ4_NL", "MXFP4"), "F16"),
}


def quantize_rows(
    values: NDArray[np.float32],
    dtype: str,
    *,
    importance: NDArray[np.float32] | None = None,
    threads: int = 1,
) -> NDArray[np.uint8]:
    """Quantise values (n, cols) to blocks of a type that `kernels.quantize_blocks` makes.

    Returns uint8 (n, row bytes), the same bits with any threads and instruction set. Blocks are
    chosen for the least squared error, weighted by rms + |value| of their group, and by the
    importance (cols,) of their columns if that is known. Raises ModelFileError for a NaN, an
    infinity, or a weight too large for a block.
    """
    try:
        return kernels.quantize_blocks(dtype, values, importance, threads=threads)
    except ValueError as error:
        raise ModelFileError(f"weights cannot be quantised: {error}.") from None


def check_scheme(name: str) -> Scheme:
    """Return `name` if it is a scheme. Raises InvalidRequestError, listing them, if not."""
    for scheme in SCHEMES:
        if scheme == name:
            return scheme
    raise InvalidRequestError(
        f"{name[:40]!r} is not a quantisation that dure makes.", hint=f"give {', '.join(SCHEMES)}"
    )


def scheme_of(checkpoint: Checkpoint, asked: Scheme | None) -> Scheme | None:
    """Return the scheme for a checkpoint's floats: the one asked for, or its packed experts'.

    Raises InvalidRequestError if it has packed experts, and another scheme is asked for.
    """
    if checkpoint.experts is None:
        return asked
    made = (
        None if checkpoint.experts.quantize is None else check_scheme(checkpoint.experts.quantize)
    )
    if asked not in (None, made):
        how = "without --quantize" if made is None else f"with --quantize {made}"
        raise InvalidRequestError(
            f"{checkpoint.path} was converted {how}, so its experts cannot be made {asked} now.",
            hint=f"convert the model again with --quantize {asked}, or leave it out",
        )
    return made


def integers_said(types: Collection[str]) -> str:
    """Say which of these types in memory are floats as integers, and how far off; "" for none."""
    said = []
    if any(name.startswith("E8G") for name in types):
        said.append("FP8 as 8-bit integers, at most 1/128 of the largest of 32 off")
    words = [name for name in ("BF16", "F16") if AS_INTEGERS[name] in types]
    if words:
        kinds = " and ".join(words)
        said.append(f"{kinds} as 16-bit integers, at most 1/64000 of the largest of 64 off")
    return "; ".join([*said, "--exact multiplies them as they are"]) if said else ""


def type_for(scheme: Scheme, part: Part, cols: int, *, sparse: bool) -> str:
    """Return the type in which rows of `cols` weights of this part are kept.

    q8: Q8_0 throughout. q6: Q6_K. q4: Q4_K; in a mixture of experts, only for the experts: what
    works on every token (attention, dense and shared MLPs) is Q6_K. Routers and vectors stay F32:
    they are small, and a wrong expert costs more than a few bits.
    """
    if part in ("router", "vector"):
        return "F32"
    whole = {"q8": "Q8_0", "q6": "Q6_K", "q4": "Q4_K"}[scheme]
    if scheme == "q4" and part != "experts" and (sparse or part in ("embedding", "head")):
        whole = "Q6_K"
    return fitting(whole, cols)


def fitting(dtype: str, cols: int) -> str:
    """Return the type, or one with smaller blocks where its own do not divide rows of `cols`."""
    while cols % BLOCKS[dtype].block_size:
        dtype = _SMALLER_BLOCKS[dtype]
    return dtype


_SMALL = ("conv1d.weight", ".conv.conv.weight", "_attn.A")  # which engines want in float32


def part_of(name: str, dimensions: int) -> Part:
    """Return the part of a model that a parameter belongs to, by the name a family gives it."""
    if dimensions < 2 or name.endswith(_SMALL):
        return "vector"  # or as small as one
    if name in ("model.embed_tokens.weight", "lm_head.weight"):
        return "head" if name.startswith("lm_head") else "embedding"
    if ".experts." in name:
        return "experts"
    if _ROUTER.fullmatch(name) or name == "score.weight":
        return "router"
    return "attention" if ".self_attn." in name or ".linear_attn." in name else "dense"


class DtypePolicy:
    """Decides the type of each matrix in memory: the file's, or the scheme's for floats.

    Without a scheme, FP8, BF16 and F16 that are multiplied become integers (`AS_INTEGERS`), unless
    all is to be exact.
    """

    def __init__(
        self, tensors: Mapping[str, Parameter], quantize: Scheme | None, *, exact: bool = False
    ) -> None:
        """tensors: all tensors of a checkpoint, under the names by which a family asks for them."""
        self._scheme = quantize
        self._exact = exact
        self._has_head = "lm_head.weight" in tensors
        self._sparse = any(".experts." in name for name in tensors)
        # Packed experts have been quantised by the scheme already.
        self._changed = int(any(isinstance(each, PackedExperts) for each in tensors.values()))

    def of(self, name: str, tensor: Parameter) -> str:
        """Return the type of a matrix in memory. Raises UnsupportedModelError for an unknown
        one.
        """
        if not BLOCKS[tensor.dtype].supported:
            tensor.read_rows(0, 0)  # raises the error that names the types we run
        if isinstance(tensor, PackedExperts):
            return tensor.dtype
        part = part_of(name, len(tensor.shape))
        if self._scheme is None or not (_is_float(tensor.dtype) or _is_shuffled(part, tensor)):
            return self._own(name, part, tensor)
        wanted = type_for(self._scheme, part, tensor.shape[-1], sparse=self._sparse)
        self._changed += not _is_float(wanted)
        return self._own(name, part, tensor) if _is_float(wanted) else wanted

    def _own(self, name: str, part: Part, tensor: Parameter) -> str:
        """Return the type of a matrix whose file's values are kept."""
        dtype = AS_INTEGERS.get(tensor.dtype)
        if dtype is None or self._exact or part in ("router", "vector"):
            return tensor.dtype
        is_table = "embed" in name and (part != "embedding" or self._has_head)  # and no head
        fits = tensor.shape[-1] % BLOCKS[dtype].block_size == 0
        return dtype if fits and not is_table else tensor.dtype

    def check(self, path: object) -> None:
        """Raise InvalidRequestError if a scheme was asked for and no matrix can be quantised."""
        if self._scheme is not None and not self._changed:
            raise InvalidRequestError(
                f"{path} has no matrix of floats that {self._scheme} could quantise.",
                hint="leave --quantize out: it is quantised already",
            )


def _is_shuffled(part: Part, tensor: Parameter) -> bool:
    """Check whether these are experts whose columns are stored in a permuted order (desc_act).

    They are not run as they are, because all experts take the same input.
    """
    return part == "experts" and isinstance(tensor, QuantizedMatrix) and tensor.columns is not None


def _is_float(dtype: str) -> bool:
    return dtype in FLOATS or dtype.startswith("F8")

"""Floats -> quantised rows, and which part of a model gets which type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, get_args

from dure import kernels
from dure.errors import InvalidRequestError, ModelFileError
from dure.formats.blocks import BLOCKS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Scheme = Literal["q8", "q6", "q4"]
Part = Literal["embedding", "head", "attention", "dense", "experts", "router", "vector"]

SCHEMES: tuple[Scheme, ...] = get_args(Scheme)

# What takes the place of a type whose blocks do not divide a row: more bits, in smaller blocks.
_SMALLER_BLOCKS: Mapping[str, str] = {"Q4_K": "Q5_0", "Q6_K": "Q8_0", "Q8_0": "F16", "Q5_0": "F16"}


def quantize_rows(
    values: NDArray[np.float32], dtype: str, *, threads: int = 1
) -> NDArray[np.uint8]:
    """values (n, cols) as blocks of Q8_0, Q6_K, Q4_K, Q5_0 or Q4_0, uint8 (n, row bytes).

    Blocks are chosen for the least squared error, weighted by rms + |value| of their group. The
    same bits with any threads and instruction set. ModelFileError for a NaN, an infinity, or a
    weight too large for a block.
    """
    try:
        return kernels.quantize_blocks(dtype, values, threads=threads)
    except ValueError as error:
        raise ModelFileError(f"weights cannot be quantised: {error}.") from None


def check_scheme(name: str) -> Scheme:
    """`name` if it is a scheme we have; InvalidRequestError names those that are."""
    for scheme in SCHEMES:
        if scheme == name:
            return scheme
    raise InvalidRequestError(
        f"{name[:40]!r} is not a quantisation that dure makes.", hint=f"give {', '.join(SCHEMES)}"
    )


def type_for(scheme: Scheme, part: Part, cols: int, *, sparse: bool) -> str:
    """The type that rows of `cols` weights of that part of a model get.

    q8: Q8_0 throughout. q6: Q6_K. q4: Q4_K, and where the model is sparse only its experts: what
    works on every token (attention, dense and shared MLPs) is Q6_K. Routers and vectors stay F32:
    they are small, and a wrong expert costs more than a few bits.
    """
    if part in ("router", "vector"):
        return "F32"
    whole = {"q8": "Q8_0", "q6": "Q6_K", "q4": "Q4_K"}[scheme]
    if scheme == "q4" and part != "experts" and (sparse or part in ("embedding", "head")):
        whole = "Q6_K"
    while cols % BLOCKS[whole].block_size:
        whole = _SMALLER_BLOCKS[whole]
    return whole

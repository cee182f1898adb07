"""Which type each tensor of a quantised GGUF file gets: dure's schemes, and llama.cpp's mixtures.

A mixture that people know by name (Q4_K_M) has one type for most matrices and a larger one where an
error costs most: the head, and in some layers the values of attention and the last matrix of the
MLP. Vectors and routers keep what they have.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from dure.errors import InvalidRequestError
from dure.weights.names import from_gguf
from dure.weights.quantize import SCHEMES, Scheme, fitting, part_of, type_for

_LAYER = re.compile(r"blk\.(\d+)\.(.+)\.weight")
_DOWN = ("ffn_down", "ffn_down_exps", "ffn_down_shexp")


@dataclass(frozen=True)
class Recipe:
    """Types by the part that a matrix plays."""

    name: str
    file_type: int | None  # llama.cpp's number in general.file_type; None: of most weights
    whole: str = ""
    head: str = ""  # of the head, or the embedding that is the head, too
    more: str = ""  # of values and down where `gets_more`; empty: none
    gets_more: Callable[[int, int], bool] = lambda _layer, _layers: False
    experts: str = ""  # of experts, if not `whole`; the MLPs of a model without any
    scheme: Scheme | None = None  # dure's own: the rule that holds when a model is loaded


def _early(layer: int, layers: int) -> bool:
    """Check for the first eighth of the layers."""
    return layer < layers // 8


def _spread(layer: int, layers: int) -> bool:
    """Check for the first and the last eighth of the layers, and every third between them."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


_NAMED = (
    Recipe("Q8_0", 7, "Q8_0", "Q8_0"),
    Recipe("Q6_K", 18, "Q6_K", "Q6_K"),
    Recipe("Q5_K_M", 17, "Q5_K", "Q6_K", "Q6_K", _spread),
    Recipe("Q5_K_S", 16, "Q5_K", "Q6_K"),
    Recipe("Q4_K_M", 15, "Q4_K", "Q6_K", "Q6_K", _spread),
    Recipe("Q4_K_S", 14, "Q4_K", "Q6_K", "Q5_K", _early),
    Recipe("IQ4_XS", 30, "IQ4_XS", "Q6_K", "Q5_K", _early),
    Recipe("IQ4_NL", 25, "IQ4_NL", "Q6_K", "Q5_K", _early),
    Recipe("MXFP4", 38, "Q8_0", "Q8_0", experts="MXFP4"),
)
RECIPES: Mapping[str, Recipe] = {
    **{each.name: each for each in _NAMED},
    "Q5_K": next(each for each in _NAMED if each.name == "Q5_K_M"),
    "Q4_K": next(each for each in _NAMED if each.name == "Q4_K_M"),
    **{scheme: Recipe(scheme, None, scheme=scheme) for scheme in SCHEMES},
}
"""What --quantize takes, by name; as in llama.cpp, Q4_K and Q5_K stand for their M."""


def recipe_named(name: str) -> Recipe:
    """Return the recipe of that name, in capitals or not. Raises InvalidRequestError, with all."""
    found = RECIPES.get(name) or RECIPES.get(name.upper()) or RECIPES.get(name.lower())
    if found is None:
        raise InvalidRequestError(
            f"{name[:40]!r} is not a quantisation that dure makes.",
            hint=f"give one of {', '.join(RECIPES)}",
        )
    return found


class Types:
    """The types of one file's tensors."""

    def __init__(self, recipe: Recipe, names: Iterable[str]) -> None:
        """names: those of all the file's tensors."""
        self._recipe = recipe
        found = [*names]
        layers = [int(match[1]) for each in found if (match := _LAYER.fullmatch(each))]
        self._layers = 1 + max(layers, default=-1)
        self._tied = "output.weight" not in found
        self._sparse = any("_exps." in each for each in found)

    def of(self, name: str, dimensions: int, cols: int) -> str | None:
        """Return the type of a tensor whose rows have `cols` weights; None: it keeps its own."""
        recipe, part = self._recipe, part_of(from_gguf(name), dimensions)
        if part in ("vector", "router") or not name.endswith(".weight"):
            return None
        if recipe.scheme is not None:
            wanted = type_for(recipe.scheme, part, cols, sparse=self._sparse)
        else:
            wanted = fitting(self._wanted(name, part), cols)
        return None if wanted == "F16" else wanted

    def _wanted(self, name: str, part: str) -> str:
        recipe = self._recipe
        if part == "head" or (part == "embedding" and self._tied):
            return recipe.head
        match = _LAYER.fullmatch(name)
        if match is None:
            return recipe.whole
        kind = match[2]
        mlp = part == "experts" if self._sparse else kind.startswith("ffn_")
        if recipe.experts and mlp:
            return recipe.experts
        if recipe.more and (kind in _DOWN or kind == "attn_v"):
            return recipe.more if recipe.gets_more(int(match[1]), self._layers) else recipe.whole
        return recipe.whole

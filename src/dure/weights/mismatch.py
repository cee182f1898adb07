"""A checkpoint's tensors against those that its model asks for: what is said of a difference?"""

from __future__ import annotations

from pathlib import Path

from dure.errors import ModelFileError, UnsupportedModelError
from dure.weights.names import few

Misshaped = tuple[str, tuple[int, ...], tuple[int, ...]]  # name, its shape, the shape asked for


def check_tensors(
    path: Path,
    missing: list[str],
    misshaped: list[Misshaped],
    left: list[str],
    *,
    all_known: bool,
) -> None:
    """Raise an error if there is a difference; it says the first kind that there is.

    left: names of tensors that nobody asked for. all_known: whether these are all differences, and
    not only those that were found so far. Raises ModelFileError, and for tensors that are left
    UnsupportedModelError.
    """
    least = "" if all_known else "at least "
    if missing:
        count = len(missing)
        what = (
            f"has no tensor {missing[0]}"
            if count == 1
            else f"lacks {least}{count:,} tensors that the model needs: {few(missing)}"
        )
        also = f" It has {len(left):,} that the model does not: {few(left)}." if left else ""
        raise ModelFileError(
            f"{path} {what}.{also}", hint="the file is incomplete, or not this model."
        )
    if len(misshaped) == 1:
        name, has, wanted = misshaped[0]
        raise ModelFileError(f"{path}: {name} has shape {has}, but the config says {wanted}.")
    if misshaped:
        each = [f"{name} {has}, not {wanted}" for name, has, wanted in misshaped]
        raise ModelFileError(
            f"{path}: {least}{len(each):,} tensors have other shapes than the config "
            f"says: {few(each, '; ')}."
        )
    if left:
        raise UnsupportedModelError(
            f"{path} has {len(left):,} tensors that this architecture does not have "
            f"({few(left)}), so running it would give wrong answers.",
            hint="the file may be of a newer variant of the family.",
        )

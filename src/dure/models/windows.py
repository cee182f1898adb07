"""Which layers of a model have a sliding window, where layers differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dure.models.config import Config


def have_windows(
    config: Config, layers: int, usual: int, *, of_folders: bool = True, drafts: int = 0
) -> tuple[bool, ...]:
    """Return for each layer whether it has a sliding window.

    That is by layer_types, else all but every n-th layer, where sliding_window_pattern says n, or
    it is `usual`; a GGUF's 0 is all layers. of_folders: whether config.json has that key, too.
    drafts: multi-token prediction layers after these, which layer_types may include.
    """
    kinds = config.layer_kinds(layers, "full_attention", "sliding_attention", drafts=drafts)
    if kinds is not None:
        return tuple(kind == "sliding_attention" for kind in kinds)
    every = usual
    if of_folders or config.is_gguf:
        every = config.integer("sliding_window_pattern", usual, low=0 if config.is_gguf else 1)
    return tuple(every == 0 or (layer + 1) % every != 0 for layer in range(layers))

"""dure cp: give a model, or a copy of a preset, another name."""

# ruff: noqa: PLC0415 - the hub is loaded when the verb runs, not for its --help

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from dure.cli import console


def command(
    source: Annotated[str, typer.Argument(help="A model, or a preset.")],
    name: Annotated[str, typer.Argument(help="Its other name.")],
) -> None:
    """Give a model another name, or copy a preset.

    The name is a preset without settings of its own: no weights are copied.
    """
    from dure import hub
    from dure.hub.presets import dated

    preset = hub.preset_of(source) or hub.Preset(name, source)
    made = hub.create(dated(replace(preset, name=name)))
    console.note(f"{made.name} is a preset of {made.base}.")

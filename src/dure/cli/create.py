"""dure create: a preset of a model, with a system message, parameters and a template of its own."""

# ruff: noqa: PLC0415 - the hub is loaded when the verb runs, not for its --help

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dure.cli import console

if TYPE_CHECKING:
    from dure.hub import Preset

DEFAULT_FILE = "Modelfile"


def command(
    name: Annotated[str, typer.Argument(help="The preset's name, as in mario or mario:v2.")],
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            show_default="./Modelfile, without --from",
            help="A Modelfile, as Ollama's: FROM, PARAMETER, SYSTEM, TEMPLATE, MESSAGE, LICENSE.",
        ),
    ] = None,
    *,
    base: Annotated[
        str | None,
        typer.Option("--from", metavar="MODEL", help="The model, or preset, that it is made of."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="A default: temperature, top_k, top_p, min_p, repeat_penalty, num_ctx, "
            "num_predict, seed, stop …; may be repeated.",
        ),
    ] = None,
    template: Annotated[
        Path | None, typer.Option(help="A file with the chat template, in Jinja.")
    ] = None,
) -> None:
    """Create a preset: a model under another name, with settings of its own.

    It takes no memory and no disk beside its model, is run and served by its name, listed, and
    removed by `dure rm`. Options win over the Modelfile. A request's own settings win over both.
    """
    from dure import hub
    from dure.chat.preset_check import check_preset
    from dure.errors import InvalidRequestError
    from dure.hub.modelfile import Modelfile, read_modelfile
    from dure.hub.presets import dated

    if file is None and base is None:
        file = Path(DEFAULT_FILE)
        if not file.exists():
            raise InvalidRequestError(
                "There is no Modelfile here, and no --from.",
                hint=f'dure create {name} --from MODEL --system "…"',
            )
    made = Modelfile() if file is None else read_modelfile(file)
    made.base = base or made.base
    made.system = made.system if system is None else system
    if template is not None:
        made.template = console.read_text(template)
        if not made.template.strip():
            raise InvalidRequestError(f"{template} is empty: a template writes the prompt.")
    for each in parameter or ():
        key, equals, value = each.partition("=")
        if not equals:
            raise InvalidRequestError(
                f"--parameter {each!r:.60} has no value.", hint="--parameter temperature=0.3"
            )
        made.set_parameter(key.strip(), value)
    preset = made.preset(name)
    check_preset(preset)
    before = hub.preset_of(name)
    preset = hub.create(dated(preset))
    console.tell_notes([*preset.settings.notes, *_about_template(preset)])
    done = "replaced" if before else "created"
    console.note(f"{preset.name} is {done}, of {preset.base}: dure run {preset.name}")


def _about_template(preset: Preset) -> list[str]:
    note = preset.settings.template_note
    return [f"{note}, unless the model has a template itself"] if note else []

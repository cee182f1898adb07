"""What is said, and perhaps asked, before a model is downloaded that is not here yet."""

# ruff: noqa: PLC0415 - planning is loaded where something is to be downloaded

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from dure.cli import console

if TYPE_CHECKING:
    from dure.planning.plan import Wish

Yes = Annotated[
    bool,
    typer.Option("--yes", "-y", help="Download a model without asking, though it will run badly."),
]


def tell_plan(
    model: str | None,
    *,
    context: int | None,
    budget: int | None,
    quantize: str | None,
    users: int = 1,
    yes: bool = False,
) -> None:
    """Print the plan's two lines for a model that is not here, and ask if it will run badly.

    model: None is the catalogue's default. Asks on a terminal only, and not with `yes`. Raises
    InvalidRequestError if the answer is no. A model that cannot be planned is not held up: what
    loading says of it is clearer.
    """
    from dure import hub
    from dure.errors import DureError

    name = model or hub.load_catalogue().default
    try:
        if hub.parse_name(name).kind == "path":
            return
        hub.resolve(name, allow_download=False)
    except DureError:
        from dure.planning.plan import Wish

        preset = hub.preset_of(name)
        name = name if preset is None else preset.base

        wish = Wish(context=context, users=users, budget=budget, quantize=quantize)
        _tell(name, wish, yes=yes)


def _tell(name: str, wish: Wish, *, yes: bool) -> None:
    from dure.cli.progress import PullReport
    from dure.errors import DureError, InvalidRequestError
    from dure.hub import Timeouts
    from dure.planning.measure import kept_machine
    from dure.planning.plan import plan_model, runs_badly, two_lines

    # The download itself is next: a hub that is far, or not there, is not waited for twice.
    patience = Timeouts(answer_s=5.0, read_s=10.0, attempts=1)
    try:
        with PullReport() as report:
            machine = kept_machine()
            plan = plan_model(name, wish, machine=machine, progress=report, patience=patience)
    except DureError:
        return
    for line in two_lines(plan):
        console.note(line)
    asked = not yes and sys.stdin is not None and sys.stdin.isatty()
    if runs_badly(plan) and asked and not typer.confirm("Download it all the same?", err=True):
        raise InvalidRequestError(f"{name} was not downloaded.", hint=f"dure plan {name}")

"""The picture of a plan: speed against depth, and against the number of users."""

# ruff: noqa: PLC0415 - libraries for drawing are an extra, and slow to import

from __future__ import annotations

import io
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dure.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dure.planning.plan import ModelPlan

TERMINAL = Path("-")
FORMS = (".svg", ".png", ".pdf")
_HINT = "pip install 'dure[plot]'"


def draw(plans: Sequence[ModelPlan], path: Path) -> None:
    """Draw plans to a file, or (path: -) to the terminal.

    Raises InvalidRequestError if there is nothing to draw, the form of file is not known, or the
    library is not installed.
    """
    found = [plan for plan in plans if plan.speeds is not None]
    if not found:
        raise InvalidRequestError("There is no speed to draw: none of the models fits.")
    if path == TERMINAL:
        _in_terminal(found)
    elif path.suffix.lower() in FORMS:
        _to_file(found, path)
    else:
        raise InvalidRequestError(
            f"{path} is no picture that can be drawn.", hint=f"a name that ends in {FORMS[0]}"
        )


def series(plan: ModelPlan) -> tuple[dict[int, float], dict[int, float]]:
    """Return tokens a second of one stream by depth, and of all streams, at depth 0, by users."""
    assert plan.speeds is not None
    decode = plan.speeds.decode
    return dict(decode[1]), {streams: by_depth[0] for streams, by_depth in decode.items()}


def _to_file(plans: Sequence[ModelPlan], path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise _missing("matplotlib") from None
    figure = Figure(figsize=(10, 4), layout="constrained")
    by_depth, by_users = figure.subplots(1, 2)
    for plan in plans:
        for axes, points in zip((by_depth, by_users), series(plan), strict=True):
            axes.plot(list(points), list(points.values()), marker="o", label=plan.name)
    for axes, title in ((by_depth, "tokens before (1 user)"), (by_users, "users (depth 0)")):
        axes.set(xlabel=title, ylabel="tokens a second", ylim=(0, None))
        axes.grid(visible=True, alpha=0.3)
    by_depth.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix[1:].lower())
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        scratch.write_bytes(picture.getvalue())
        scratch.replace(path)
    except OSError as error:
        raise InvalidRequestError(f"{path} cannot be written: {error.strerror}.") from None
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


def _in_terminal(plans: Sequence[ModelPlan]) -> None:
    try:
        import plotext
    except ImportError:
        raise _missing("plotext") from None
    plot: Any = plotext
    for number, title in enumerate(("tokens before (1 user)", "users (depth 0)")):
        plot.clear_figure()
        plot.theme("clear")
        plot.plot_size(None, 15)
        for plan in plans:
            points = series(plan)[number]
            plot.plot(list(points), list(points.values()), label=plan.name, marker="braille")
        plot.title("tokens a second")
        plot.xlabel(title)
        plot.show()


def _missing(library: str) -> InvalidRequestError:
    return InvalidRequestError(f"Pictures need {library}, which is not installed.", hint=_HINT)

"""Write docs/cli.md, docs/api.md and the options of docs/environment.md; `--check` compares them.

The pages are what the code says of itself: help texts of the command, signatures and docstrings of
the public names. A test runs this file, so the pages cannot fall behind.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from typer.models import OptionInfo

import dure
from dure.cli import ENVIRONMENT, VERBS

HERE = Path(__file__).parent
MADE = "<!-- made by docs/generate.py; change the code's docstrings and help texts instead -->"


def cli_page() -> str:
    """Return docs/cli.md: every verb with its arguments and options."""
    parts = [
        "# The command line",
        MADE,
        "`dure VERB --help` prints the same. Answers and results go to stdout, everything else to "
        "stderr; `--json` prints one JSON object.",
        "Exit codes: 0 done; 1 an error, said on stderr; 2 wrong usage; 130 stopped by Ctrl-C.",
        "\n".join(f"- [`dure {verb}`](#dure-{verb}): {line}" for verb, line in VERBS.items()),
    ]
    for verb in VERBS:
        parts += _verb(verb)
    return "\n\n".join(parts) + "\n"


@dataclass(frozen=True)
class Parameter:
    """An argument or option of a verb, read from its function's signature."""

    parameter: str  # its name in the function
    names: str  # "--threads", or an argument's metavar
    kind: Any  # the type of its value, without None and list
    repeated: bool
    required: bool
    default: Any
    info: Any  # typer's ArgumentInfo or OptionInfo

    @property
    def is_option(self) -> bool:
        return isinstance(self.info, OptionInfo)


def parameters_of(verb: str) -> list[Parameter]:
    """Return the arguments and options of a verb, in the order of its help."""
    command = import_module(f"dure.cli.{verb}").command
    hints = get_type_hints(command, include_extras=True)
    found = []
    for name, each in inspect.signature(command).parameters.items():
        kind, info = get_args(hints[name])
        plain = next(part for part in get_args(kind) or (kind,) if part is not type(None))
        repeated = get_origin(plain) is list or get_origin(kind) is list
        plain = get_args(plain)[0] if get_args(plain) else plain
        dashed = "--" + name.replace("_", "-")
        is_option = isinstance(info, OptionInfo)
        names = ", ".join(_names(info) or [dashed]) if is_option else name.upper()
        required = each.default is inspect.Parameter.empty
        found.append(Parameter(name, names, plain, repeated, required, each.default, info))
    return found


def _names(info: Any) -> list[str]:
    """Return the names that an option is declared with; typer keeps the first as its default."""
    first = [info.default] if str(info.default).startswith("-") else []
    return [*first, *(info.param_decls or ())]


def _verb(verb: str) -> list[str]:
    arguments = [each for each in parameters_of(verb) if not each.is_option]
    options = [each for each in parameters_of(verb) if each.is_option]
    usage = " ".join(["dure", verb, *map(_argument, arguments), "[OPTIONS]"])
    rows = [(_argument(each), each.info.help or "") for each in arguments]
    rows += [(_option(each), _explained(each)) for each in options]
    table = "\n".join(f"| `{_cell(name)}` | {_cell(text)} |" for name, text in rows)
    about = inspect.getdoc(import_module(f"dure.cli.{verb}").command) or ""
    return [f"## dure {verb}", f"```\n{usage}\n```", about, f"| | |\n|---|---|\n{table}"]


def _argument(parameter: Parameter) -> str:
    name = (parameter.info.metavar or parameter.names) + (" …" if parameter.repeated else "")
    return name if parameter.required else f"[{name}]"


def _option(parameter: Parameter) -> str:
    if parameter.kind is bool:
        return parameter.names
    return f"{parameter.names} {parameter.info.metavar or _kind(parameter.kind)}"


def _kind(kind: Any) -> str:
    if issubclass(kind, Enum):
        return "|".join(each.value for each in kind)
    return {int: "N", float: "X", str: "TEXT", Path: "FILE"}[kind]


def _explained(parameter: Parameter) -> str:
    """Return the help text, with the range and the default."""
    info, notes = parameter.info, []
    if info.max is not None:
        notes.append(f"{info.min} to {info.max}")
    elif info.min is not None:
        notes.append(f"at least {info.min}")
    if isinstance(info.show_default, str):
        notes.append(f"default: {info.show_default}")
    elif parameter.kind is not bool and not parameter.required and parameter.default is not None:
        notes.append(f"default: {getattr(parameter.default, 'value', parameter.default)}")
    text = (info.help or "").rstrip()
    return f"{text} ({'; '.join(notes)})" if notes else text


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def api_page() -> str:
    """Return docs/api.md: every public name with its signature and docstring."""
    classes = [n for n in dure.__all__ if inspect.isclass(getattr(dure, n)) and not _is_error(n)]
    errors = [name for name in dure.__all__ if _is_error(name)]
    parts = [
        "# The Python API",
        MADE,
        "`from dure import NAME` for each name below. A name is imported on first use, so that "
        "`import dure` stays fast. Everything else in the package may change in any version.",
        "\n".join(f"- [`{name}`](#{name.lower()}): {_first(name)}" for name in [*classes, *errors]),
    ]
    for name in classes:
        parts += _class(name)
    parts.append("## Errors")
    parts.append(
        "Every error that dure raises on purpose is a `DureError`. `message` is one sentence, "
        "`hint` says what to do, `detail` is what a library said; `str(error)` has all three."
    )
    rows = [f"| <a id='{n.lower()}'></a>`{n}` | {_bases(n)} | {_first(n)} |" for n in errors]
    parts.append("| error | is a | meaning |\n|---|---|---|\n" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"


def _is_error(name: str) -> bool:
    value = getattr(dure, name)
    return inspect.isclass(value) and issubclass(value, BaseException)


def _bases(name: str) -> str:
    return ", ".join(f"`{each.__name__}`" for each in getattr(dure, name).__bases__)


def _first(name: str) -> str:
    text = (inspect.getdoc(getattr(dure, name)) or "").split("\n\n")[0]
    return " ".join(text.split())


def _class(name: str) -> Iterator[str]:
    """Yield the parts of a class: docstring, fields or constructor, properties and methods."""
    kind = getattr(dure, name)
    yield f"## {name}"
    yield _doc(kind)
    if is_dataclass(kind):
        comments = field_comments(kind)
        rows = [
            f"| `{each.name}` | `{_type(each.type)}` | {_default(each)} | "
            f"{_cell(comments.get(each.name, ''))} |"
            for each in fields(kind)
            if not each.name.startswith("_")
        ]
        yield "| field | type | default | |\n|---|---|---|---|\n" + "\n".join(rows)
    else:
        yield _signature(name, kind.__init__)
        yield _doc(kind.__init__)
    for member, value in vars(kind).items():
        if member.startswith("_"):
            continue
        if isinstance(value, property):
            yield f"### {name}.{member}"
            yield f"`{_type(value.fget.__annotations__['return'])}`. {_doc(value.fget)}"
        elif inspect.isfunction(value):
            yield f"### {name}.{member}"
            yield _signature(f"{name}.{member}", value)
            yield _doc(value)


def _type(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return text.replace("|", "\\|")


def _default(field: Any) -> str:
    if field.default is not MISSING:
        return f"`{field.default!r}`"
    return "required" if field.default_factory is MISSING else f"`{field.default_factory()!r}`"


def _doc(value: Any) -> str:
    """Return a docstring as Markdown: a line `name: …` about an argument becomes a list item."""
    lines, is_item = [], False
    for line in (inspect.getdoc(value) or "").splitlines():
        starts = re.match(r"[a-z_]+(, [a-z_]+)*: ", line) is not None
        is_item = starts or (is_item and line.startswith("    "))
        if starts:
            names, _, rest = line.partition(": ")
            lines.append(f"- `{names}`: {rest}".replace(", ", "`, `", names.count(", ")))
        else:
            lines.append("  " + line.strip() if is_item else line)
    return "\n".join(lines)


def _signature(name: str, function: Any) -> str:
    """Format a signature as in the source, one argument a line where it is long."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    if isinstance(node, ast.AsyncFunctionDef) and not inspect.isasyncgenfunction(
        inspect.unwrap(function)
    ):
        name = f"await {name}"
    given = node.args
    given.args = [each for each in given.args if each.arg != "self"]
    is_init = function.__name__ == "__init__"
    returns = "" if is_init or node.returns is None else " -> " + ast.unparse(node.returns)
    text = f"{name}({ast.unparse(given)}){returns}".replace("=", " = ")
    if len(text) > 90:
        body = textwrap.indent(",\n".join(_arguments(given)), "    ")
        text = f"{name}(\n{body},\n){returns}"
    return f"```python\n{text}\n```"


def _arguments(given: ast.arguments) -> list[str]:
    """Format each argument with its type and default, and the star before keyword-only ones."""
    first = len(given.args) - len(given.defaults)
    defaults: list[Any] = [None] * first + given.defaults
    lines = [_argument_text(*each) for each in zip(given.args, defaults, strict=True)]
    lines += ["*"] if given.kwonlyargs else []
    pairs = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    lines += [_argument_text(*each) for each in pairs]
    return [*lines, f"**{ast.unparse(given.kwarg)}"] if given.kwarg else lines


def _argument_text(argument: ast.arg, default: Any) -> str:
    text = ast.unparse(argument)
    return text if default is None else f"{text} = {ast.unparse(default)}"


def field_comments(kind: type) -> dict[str, str]:
    """Return the comment beside or after each field of a dataclass, from its source."""
    source = textwrap.dedent(inspect.getsource(kind))
    lines = source.splitlines()
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            last = (node.end_lineno or node.lineno) - 1
            tail = lines[last][len(lines[last].encode()[: node.end_col_offset].decode()) :]
            if "#" in tail:
                found[node.target.id] = tail.partition("#")[2].strip()
    return found


BEGIN, END = "<!-- options: made by docs/generate.py -->", "<!-- end of options -->"


def environment_page() -> str:
    """Return docs/environment.md with the variables of all options between its two marks."""
    text = (HERE / "environment.md").read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{_variables()}\n\n{END}{rest.partition(END)[2]}"


def _variables() -> str:
    about = (
        f"Every option of every verb has a variable: `{ENVIRONMENT}_`, the verb, `_` and the "
        "option's name in capitals, so that `DURE_SERVE_PORT` is `--port` of `dure serve`. Where "
        "an option may be repeated, its values are separated by spaces, those that are paths as in "
        "`PATH`; a switch is on with `1`, and off with `0`. `DURE_SERVE_MODELS` has the models to "
        "serve. An option given on the command line wins."
    )
    rows = []
    for verb in VERBS:
        options = [each for each in parameters_of(verb) if each.is_option]
        for each in options:
            variable = f"{ENVIRONMENT}_{verb}_{each.parameter}".upper()
            rows.append(
                f"| `dure {verb} {each.names.split(', ')[0].split('/')[0]}` | `{variable}` |"
            )
    return "\n\n".join(
        [textwrap.fill(about, 125), "| option | variable |\n|---|---|\n" + "\n".join(rows)]
    )


PAGES = {"cli.md": cli_page, "api.md": api_page, "environment.md": environment_page}


def main(arguments: list[str]) -> int:
    """Write the pages, or with --check say which differ. Returns the exit code."""
    stale = []
    for file, page in PAGES.items():
        path, text = HERE / file, page()
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(file)
        if "--check" not in arguments:
            path.write_text(text, encoding="utf-8")
    if stale:
        print(("differ: " if "--check" in arguments else "written: ") + ", ".join(stale))
    return int(bool(stale) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

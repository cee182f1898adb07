"""The process that renders chat templates.

It reads requests from stdin and answers on stdout until stdin closes. It imports nothing of dure,
so that it starts in a tenth of a second, and gives up what a template could misuse before it reads
the first one. The parent, template.py, says how it is started, what is asked and what comes back.
"""

from __future__ import annotations

# What is imported here without being used, Jinja and the codecs it reads literals with import when
# they first need it: too late, since by then this process may open no file.
import contextlib
import html  # noqa: F401
import json
import pprint  # noqa: F401
import signal
import sys
import textwrap  # noqa: F401
import traceback  # noqa: F401
import unicodedata  # noqa: F401
from collections import OrderedDict
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, BinaryIO

import jinja2.async_utils
import jinja2.debug
import jinja2.ext
import jinja2.nodes
import jinja2.utils
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

try:
    import resource
except ImportError:  # Windows: the sandbox and the parent's clock are what is left
    resource = None  # type: ignore[assignment]

MAX_MEMORY_BYTES = 512 << 20
MAX_KEPT_TEMPLATES = 8
MAX_REASON_CHARS = 500


class OutputTooLongError(Exception):
    """The template wrote more than it may."""


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, but what it forbids is an error and not an undefined value."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        """SecurityError, always."""
        raise SecurityError(
            f"it reaches for {attribute!r} of a {type(obj).__name__}, which is forbidden"
        )


class Generation(jinja2.ext.Extension):
    """Accepts {% generation %}, which marks answers for training: here it only groups."""

    tags = {"generation"}  # noqa: RUF012  # the name and type are Jinja's

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        """Return the tag's contents, as they would be without it."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


class Namespace(jinja2.utils.Namespace):
    """A namespace that stores no hidden attributes, as in transformers."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # Positional only, like Jinja's own, so that namespace(self=1) works.
        for name in dict(*args[1:], **kwargs):
            _check_name(name)
        jinja2.utils.Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"it stores the hidden attribute {name!r}")


def _raise_exception(message: object) -> None:
    raise jinja2.TemplateError(str(message))


def _strftime_now(format: str) -> str:  # noqa: A002  # the name is transformers'
    return datetime.now().strftime(format)


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def make_environment() -> Sandbox:
    """Return a sandbox with the tags, filters and globals that Hugging Face's templates expect."""
    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.filters["from_json"] = json.loads  # of llama.cpp; DeepSeek V3.2 as it has it
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=_strftime_now,
        dict=_make_dict,
        namespace=Namespace,
    )
    del environment.globals["lipsum"]  # random text has no place in a prompt
    return environment


def _to_list(value: Any) -> list[Any]:
    """Make a list of what `map`, `select` and their like return."""
    if isinstance(value, Iterator):
        return list(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return `value` as JSON, as transformers writes it: letters unescaped, no HTML escapes."""
    return json.dumps(
        value,
        default=_to_list,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def give_up_rights() -> None:
    """Give up the rights to grow, and to open or write files.

    A template that escaped the sandbox would find itself here.
    """
    if resource is None:
        return
    datetime.now().astimezone()  # reads the time zone file
    for codec in ("unicode_escape", "ascii", "latin-1", "utf-8"):
        "".encode(codec).decode(codec)
    limits = {
        resource.RLIMIT_AS: MAX_MEMORY_BYTES,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 0,
    }
    for limit, value in limits.items():
        # macOS refuses RLIMIT_AS; the rest still helps.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(limit, (value, value))


def set_clock(seconds: float) -> None:
    """Let this process die once it has used `seconds` of CPU time. 0 stops the clock.

    SIGPROF kills where it stands, in the midst of `10**10**8` too, and a loaded machine does not
    make the clock run faster.
    """
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def render(template: jinja2.Template, variables: dict[str, Any], limit: int) -> str:
    """Render the template; raise OutputTooLongError beyond `limit` characters."""
    parts: list[str] = []
    total = 0
    for part in template.generate(variables):
        total += len(part)
        if total > limit:
            raise OutputTooLongError
        parts.append(part)
    return "".join(parts)


def answer(request: dict[str, Any], compiled: Callable[[str], jinja2.Template]) -> tuple[str, str]:
    """Answer one request: ("ok", text), or (what went wrong, the reason)."""
    try:
        template = compiled(request["source"])
        return "ok", render(template, request["variables"], request["limit"])
    except OutputTooLongError:
        return "long", ""
    except MemoryError:
        return "memory", ""
    except SecurityError as error:
        return "security", str(error)
    except jinja2.TemplateSyntaxError as error:
        return "syntax", f"line {error.lineno}: {error.message}"
    except jinja2.UndefinedError as error:
        return "failed", str(error)
    except jinja2.TemplateError as error:
        return "refused", str(error)
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer every request, a line of JSON each.

    An answer is a line "<what> <bytes>" and then that many bytes of UTF-8.
    """
    environment = make_environment()
    kept: OrderedDict[str, jinja2.Template] = OrderedDict()

    def compiled(source: str) -> jinja2.Template:
        if source not in kept:
            kept[source] = environment.from_string(source)
            while len(kept) > MAX_KEPT_TEMPLATES:
                kept.popitem(last=False)
        return kept[source]

    give_up_rights()
    for line in requests:
        request = json.loads(line)
        set_clock(request["seconds"])
        what, text = answer(request, compiled)
        if what != "ok":
            text = text[:MAX_REASON_CHARS]
        payload = text.encode("utf-8", "surrogatepass")
        set_clock(0)
        answers.write(b"%s %d\n" % (what.encode(), len(payload)))
        answers.write(payload)
        answers.flush()


def main() -> None:
    """Run until stdin closes."""
    # Ctrl-C is meant for the parent, which decides what becomes of us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()

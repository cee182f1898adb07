"""Chat templates: Jinja programs that come with a model, run where they can do no harm.

Why in a process of their own: the sandbox keeps a template from Python's internals, but not from
`'x' * 10**9` or `10**10**8`, single operations that no check inside the interpreter can interrupt.
A process can be given a memory and a CPU limit by the system, and be killed. It is started at the
first rendering (about 0.15 s), kept, and costs less than a millisecond a rendering afterwards. It
is a fresh interpreter and no fork, since a fork of a process with threads may hang.
"""

from __future__ import annotations

import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dure.errors import InvalidRequestError, RenderingError, TemplateError

if TYPE_CHECKING:
    from dure.text.tokenizer import Tokenizer

# The longest template shipped with a known model has 18 KB.
MAX_SOURCE_BYTES = 256 << 10
MAX_INPUT_BYTES = 16 << 20
# On top of twice the input: templates repeat their tools and little else.
MAX_OUTPUT_CHARS = 4 << 20
# Real templates take milliseconds. CPU time, so that a loaded machine fails no sound template; the
# clock on the wall is for a machine that gives it none at all.
MAX_CPU_SECONDS = 2.0
MAX_WALL_SECONDS = 20.0

_START = (
    "import runpy, sys; sys.path[:0] = sys.argv[2:];"
    "runpy.run_path(sys.argv[1], run_name='__main__')"
)

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def default_template(tokenizer: Tokenizer) -> str | None:
    """Return ChatML for a model without a template, if it has the tokens; else None."""
    known = all(tokenizer.token_id(text) is not None for text in ("<|im_start|>", "<|im_end|>"))
    return CHATML if known else None


class ChatTemplate:
    """Renders one model's chat template. Thread-safe; renderings take turns."""

    def __init__(self, source: str, *, bos_token: str, eos_token: str) -> None:
        """Raise TemplateError if the source is too long. The first render checks its syntax."""
        size = len(source.encode("utf-8", "surrogatepass"))
        if size > MAX_SOURCE_BYTES:
            raise TemplateError(
                f"the model's chat template has {size:,} bytes; the limit is {MAX_SOURCE_BYTES:,}",
                hint="give a template of your own",
            )
        self.source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._lock = threading.Lock()
        self._worker: _Worker | None = None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """Render the messages to a prompt. `variables` are the template's own switches.

        Raises TemplateError when the template refuses the messages, is broken, forbidden, too slow
        or writes too much; InvalidRequestError for messages that are too long or not plain data.
        """
        given = {
            **self._tokens,
            "documents": None,
            "tools": tools,
            **variables,
            "messages": [_with_reasoning(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
        }
        data = _to_json(given)
        limit = MAX_OUTPUT_CHARS + 2 * len(data)
        source = json.dumps(self.source).encode()
        form = b'{"source": %s, "limit": %d, "seconds": %f, "variables": %s}\n'
        request = form % (source, limit, MAX_CPU_SECONDS, data)
        with self._lock:
            what, text = self._ask(request, limit)
        if what == "ok":
            return text
        raise _error(what, text, limit)

    def close(self) -> None:
        """End the process. The next render starts another."""
        with self._lock:
            self._discard()

    def _ask(self, request: bytes, limit: int) -> tuple[str, str]:
        """Ask the worker; replace one that died (memory may be short) and ask again."""
        what, text = self._asked_once(request, limit)
        return self._asked_once(request, limit) if what == "died" else (what, text)

    def _asked_once(self, request: bytes, limit: int) -> tuple[str, str]:
        """Ask the worker once, after starting one if none is usable."""
        if self._worker is not None and not self._worker.usable():
            self._discard()
        if self._worker is None:
            self._worker = _Worker()
        try:
            what, text = self._worker.ask(request, limit)
        except BaseException:  # Ctrl-C in the midst of an answer leaves the rest of it in the pipe
            self._discard()
            raise
        if what in ("time", "memory", "died"):
            self._discard()
        return what, text

    def _discard(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None


class _Worker:
    """A running template_worker.py. Its process ends with this object, or with ours."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("template_worker.py")
        # -I ignores PYTHONPATH and the current folder, so the worker is told where our Jinja is.
        folders = {_folder_of(name): None for name in ("jinja2", "markupsafe")}
        # Keys and tokens in the environment are nothing a template should ever be near to.
        keep = ("PATH", "TZ", "LANG", "LC_ALL", "LC_TIME", "LD_LIBRARY_PATH", "SYSTEMROOT")
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _START, str(script), *folders],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in keep if name in os.environ},
                cwd=script.parent,
                start_new_session=True,  # Ctrl-C in the terminal is not for the worker
            )
        except (OSError, ValueError) as error:
            raise RenderingError(
                "the process that renders chat templates cannot be started",
                detail=f"{sys.executable or 'no Python interpreter'}: {error}",
            ) from error
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        self._owner = os.getpid()
        self._finalizer = weakref.finalize(self, _end, self._process, self._owner)

    def usable(self) -> bool:
        """Return whether the process runs and is ours (after a fork it is the other process's)."""
        return self._owner == os.getpid() and self._process.poll() is None

    def ask(self, request: bytes, limit: int) -> tuple[str, str]:
        """Send a request; return "ok" or what went wrong, and the text or the reason."""
        deadline = time.monotonic() + MAX_WALL_SECONDS
        got = bytearray()
        try:
            self._send(request, deadline)
            self._receive(got, lambda: b"\n" in got[:64] or len(got) > 64, deadline)
            head = got[:64].partition(b"\n")[0]
            what, _, size = head.decode("ascii", "replace").partition(" ")
            # UTF-8 takes at most 4 bytes a character; more than that would be no worker of ours.
            count = int(size) if size.isdigit() else -1
            if 0 <= count <= 4 * limit:
                whole = len(head) + 1 + count
                self._receive(got, lambda: len(got) >= whole, deadline)
                if len(got) == whole:
                    return what, got[len(head) + 1 :].decode("utf-8", "surrogatepass")
        except TimeoutError:
            return self._cause(late=True), ""
        except OSError:
            pass  # the pipe broke: the process is gone
        return self._cause(late=False), ""

    # The pipes are waited for with a deadline. A thread to watch the clock would be one a rendering
    # and, where there is no memory to begin it with, Python waits for it for ever.
    def _send(self, data: bytes, deadline: float) -> None:
        """Write all of `data` to the worker. Raises TimeoutError, OSError."""
        assert self._process.stdin is not None
        pipe = self._process.stdin.fileno()
        rest = memoryview(data)
        while rest:
            _await(pipe, select.POLLOUT, deadline)
            rest = rest[os.write(pipe, rest) :]

    def _receive(self, got: bytearray, is_enough: Callable[[], bool], deadline: float) -> None:
        """Read from the worker into `got` until it is enough. Raises TimeoutError, OSError."""
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        while not is_enough():
            _await(pipe, select.POLLIN, deadline)
            part = os.read(pipe, 1 << 16)
            if not part:
                raise BrokenPipeError
            got += part

    def _cause(self, *, late: bool) -> str:
        """Return why there was no answer."""
        self._process.kill()
        code = self._process.wait()
        return "time" if late or code == -getattr(signal, "SIGPROF", 0) else "died"

    def close(self) -> None:
        """Kill the process and wait for its end."""
        self._finalizer()


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if owner != os.getpid():
        return  # we are a fork: the process belongs to our parent
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:
                continue  # unsent bytes of a request whose worker died
    process.wait()


def _await(pipe: int, event: int, deadline: float) -> None:
    """Wait until the pipe can be read or written; raise TimeoutError past the deadline."""
    poll = select.poll()
    poll.register(pipe, event)
    if not poll.poll(1000 * max(0.0, deadline - time.monotonic())):
        raise TimeoutError


def _folder_of(module: str) -> str:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise TemplateError(f"the package {module} is missing", hint=f"pip install {module}")
    return str(Path(spec.origin).parent.parent)


def _with_reasoning(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the message with its reasoning under each name that templates read."""
    names = ("reasoning_content", "thinking", "reasoning")
    for name in names:
        reasoning = message.get(name)
        if reasoning is not None:
            return {"thinking": reasoning, **message, "reasoning_content": reasoning}
    return message


def _to_json(given: Mapping[str, Any]) -> bytes:
    """Return `given` as a line of JSON; raise InvalidRequestError if not plain data or too long."""
    try:
        data = json.dumps(given, default=_plain).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(
            f"the messages hold something that is not plain data: {error}",
            hint="use texts, numbers, lists and dictionaries only",
        ) from error
    if len(data) > MAX_INPUT_BYTES:
        raise InvalidRequestError(
            f"the messages take {len(data):,} bytes; the limit is {MAX_INPUT_BYTES:,}",
            hint="send a shorter conversation",
        )
    return data


def _plain(value: object) -> Any:
    """Convert other mappings and sequences to dict and list; raise TypeError for the rest."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"a {type(value).__name__}")


def _error(what: str, reason: str, limit: int) -> TemplateError:
    """Return the exception for an answer that is not a text."""
    if what == "refused":
        return TemplateError(
            f"the model's chat template refuses these messages: {reason}",
            hint="order the roles, and give the parts, as the template asks",
        )
    reasons = {
        "syntax": "the model's chat template is broken",
        "failed": "the model's chat template fails on these messages",
        "security": "the model's chat template was stopped: it does what the sandbox forbids",
        "long": f"the model's chat template writes more than {limit:,} characters",
        "memory": "the model's chat template needs more than 512 MiB of memory",
        "time": f"the model's chat template takes more than {MAX_CPU_SECONDS:g} s of CPU time",
    }
    if what not in reasons:
        return RenderingError("the process that renders the model's chat template died, twice")
    own = "give a template of your own, or one from a newer version of the model"
    return TemplateError(reasons[what], hint=own, detail=reason)

"""Processes that need no second for their imports: forked from one that has made them.

`python preloaded.py CONTROL MODULE...` is that one. It waits at the socket CONTROL for orders, and
runs a script for each in a child, which ends as any Python does: the interpreter is taken down.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Child:
    """A forked process, with what subprocess.Popen has."""

    def __init__(self, pid: int, status: int, stderr: int) -> None:
        self.pid = pid
        self.stderr = os.fdopen(stderr)
        self.returncode: int | None = None
        self._status = status

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, minus the signal that ended it. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a forked process", timeout or 0)
            self.returncode = int(os.read(self._status, 16))
            os.close(self._status)
        return self.returncode

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Preloaded:
    """The process that has imported `modules`."""

    def __init__(self, *modules: str) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), *modules],
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def start(
        self,
        *arguments: str,
        env: Mapping[str, str],
        limits: Mapping[str, int],
        ignored: Sequence[int],
    ) -> Child:
        """Run a script, `arguments` from its path on, without a standard input or output.

        limits: of the resource module, by name. ignored: signals.
        """
        order = {"argv": arguments, "env": {**env}, "limits": {**limits}, "ignored": [*ignored]}
        stderr, their_stderr = os.pipe()
        status, their_status = os.pipe()
        nothing = os.open(os.devnull, os.O_RDWR)
        theirs = [nothing, nothing, their_stderr, their_status]
        socket.send_fds(self._control, [json.dumps(order).encode()], theirs)
        for each in {*theirs}:
            os.close(each)
        return Child(int(self._control.recv(64)), status, stderr)

    def close(self) -> None:
        self._control.close()
        self._process.wait(60)


def next_order(control: socket.socket) -> dict[str, Any] | None:
    """In a child its order; here None, once nobody can order any more."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    statuses: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([control, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
        while statuses:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            os.write(statuses[pid], str(os.waitstatus_to_exitcode(status)).encode())
            os.close(statuses.pop(pid))
        if control not in ready:
            continue
        data, given, _, _ = socket.recv_fds(control, 1 << 18, 4)
        if not data:
            return None
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            control.close()
            for number, each in enumerate(given[:3]):
                os.dup2(each, number)
            for each in {*given, *statuses.values(), woken, wake}:
                os.close(each)
            return json.loads(data)
        statuses[pid] = given[3]
        for each in given[:3]:
            os.close(each)
        control.send(str(pid).encode())


def main() -> None:
    for module in sys.argv[2:]:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # or the first search for garbage copies every page
    order = next_order(socket.socket(fileno=int(sys.argv[1])))
    if order is None:
        return
    for number in order["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    for name, value in order["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    os.environ.clear()
    os.environ.update(order["env"])
    # Those that are here found out at the start what they write to, and that was another file.
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
    sys.argv = order["argv"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()

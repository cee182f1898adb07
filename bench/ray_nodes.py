"""A part of `ray_net.py` and `ray_chaos.py`: Ray nodes on one machine, as if on several.

Each node has a network, processes, /tmp/ray and /dev/shm of its own (Linux namespaces, so it needs
root, and unshare, nsenter, setpriv and ip of util-linux and iproute2). Cables (veth) go from each
to a switch, which may be slow or lose frames: by tc's netem where the kernel has it, else by this
file, which then passes on every frame itself. All ends with the process that made it, in any case.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import os
import random
import secrets
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GCS_PORT = 6379
STAGE = b"ray::_StageInRay"
"""What Ray calls a process that has a stage."""

_ATTEMPTS = 3
_AGENT_PORTS = (
    *("--dashboard-agent-grpc-port=6381", "--dashboard-agent-listen-port=6382"),
    *("--runtime-env-agent-port=6383", "--metrics-export-port=6384"),
)  # without them a raylet waits until its agents have chosen some, which is long on a busy machine
_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_SIOCETHTOOL, _ETHTOOL_STXCSUM = 0x8946, 0x17
_ALL_FRAMES, _OUTGOING = 3, 4
_INIT = """
mount -t tmpfs tmpfs /dev/shm && mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray || exit 1
mkdir /tmp/ray/tmp && ip link set lo up && echo ready
while :; do sleep 1000 & wait; done
"""  # the shell reaps whoever is left without a parent


@dataclass
class Node:
    """A machine, so to speak."""

    number: int  # from 1, the head
    keeper: subprocess.Popen[bytes]  # its processes end with it
    pid: int  # of the first of them

    @property
    def host(self) -> str:
        return f"10.77.0.{self.number}"

    @property
    def network(self) -> int:
        """What tells its network from others."""
        return _network_of(self.pid)


class Nodes:
    """Machines, the switch between them, and Ray on all; ends with the `with` block."""

    def __init__(self, count: int, *, env: dict[str, str] | None = None) -> None:
        if os.geteuid() != 0:
            raise SystemExit("namespaces need root")
        self.env = {
            **os.environ,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            # Said aloud: by default, a head has a token and a node that joins it uses none (2.60).
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "TMPDIR": "/tmp/ray/tmp",  # the node's own
            **(env or {}),
        }
        self.start_seconds: list[float] = []  # of Ray on each node
        self.way = ""  # in which the network is slow
        self._slow: subprocess.Popen[bytes] | None = None
        self._switch = _kept("unshare", "--net", "sleep", "infinity")
        _wait_for_network(self._switch.pid)
        self.nodes: list[Node] = []
        try:
            self._in_switch("ip", "link", "add", "br0", "type", "bridge")
            self._in_switch("ip", "link", "set", "br0", "up", "mtu", "9000")
            for number in range(1, count + 1):
                self.nodes.append(self._made(number))
            self.slow(0.0)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def head(self) -> Node:
        return self.nodes[0]

    @property
    def address(self) -> str:
        return f"{self.head.host}:{GCS_PORT}"

    def close(self) -> None:
        """End every process of every node, and with them their networks."""
        for each in (self._slow, *(node.keeper for node in self.nodes), self._switch):
            if each is not None:
                each.kill()
                each.wait()
        self.nodes, self._slow = [], None

    def start_ray(self, node: Node) -> None:
        """Start Ray on a node, which then is part of the cluster."""
        ray = str(Path(sys.executable).with_name("ray"))
        which = ["--head", f"--port={GCS_PORT}"] if node is self.head else []
        which += [] if node is self.head else [f"--address={self.address}"]
        words = self.command(
            node,
            *(ray, "start", *which, f"--node-ip-address={node.host}"),
            *("--num-cpus=1", f"--object-store-memory={80 << 20}", *_AGENT_PORTS),
            *(["--include-dashboard=false"] if node is self.head else []),
        )
        for _ in range(_ATTEMPTS):  # Ray gives up after 30 s, which is short on a busy machine
            began = time.monotonic()
            done = subprocess.run(words, env=self.env, capture_output=True, check=False)
            if done.returncode == 0:
                self.start_seconds.append(time.monotonic() - began)
                return
            self.end_all(node)
        raise RuntimeError((done.stdout + done.stderr).decode("utf-8", "replace")[-2000:])

    def end_all(self, node: Node) -> None:
        """Kill every process of a node but the one that keeps it."""
        for pid, _ in self.processes(node):
            if pid != node.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def command(self, node: Node, *words: str) -> list[str]:
        """What runs a command on a node."""
        return ["nsenter", "-t", str(node.pid), "-m", "-n", "-p", "-i", "--", *words]

    def popen(self, node: Node, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a command on a node; its own process is `child_of` what is returned."""
        return subprocess.Popen(self.command(node, *words), env=self.env, **options)

    def slow(self, milliseconds: float, loss: float = 0.0) -> None:
        """Let every frame take so long from node to node; lose that share of them."""
        if self._slow is not None:
            self._slow.kill()
            self._slow.wait()
            self._slow = None
        ports = [f"p{node.number}" for node in self.nodes]
        for port in ports:
            self._in_switch("ip", "link", "set", port, "master", "br0", "up")
            self._in_switch("tc", "qdisc", "del", "dev", port, "root", check=False)
        self.way = "a bridge"
        if not milliseconds and not loss:
            return
        netem = ["netem", "delay", f"{milliseconds}ms", *(["loss", f"{100 * loss}%"] * (loss > 0))]
        added = [
            self._in_switch("tc", "qdisc", "add", "dev", port, "root", *netem, check=False)
            for port in ports
        ]
        if not any(added):
            self.way = "tc netem"
            return
        for port in ports:
            self._in_switch("tc", "qdisc", "del", "dev", port, "root", check=False)
            self._in_switch("ip", "link", "set", port, "nomaster")
        self.way = "a switch of the benchmark's, as this kernel has no netem"
        words = [sys.executable, __file__, str(milliseconds), str(loss), *ports]
        self._slow = _kept("nsenter", "-t", str(self._switch.pid), "-n", "--", *words)

    def cut(self, node: Node) -> None:
        """Pull a node's cable."""
        self._in_switch("ip", "link", "set", f"p{node.number}", "down")

    def mend(self, node: Node) -> None:
        """Put a node's cable in again."""
        self._in_switch("ip", "link", "set", f"p{node.number}", "up")

    def processes(self, node: Node) -> Iterator[tuple[int, bytes]]:
        """Every process on a node, by the ids of this machine, with its command line."""
        network = node.network
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            with contextlib.suppress(OSError):
                if _network_of(entry.name) == network:
                    yield int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ")

    def stages(self, node: Node) -> list[int]:
        """The processes on a node that have, or had, a stage."""
        return [pid for pid, line in self.processes(node) if line.startswith(STAGE)]

    def has_ray(self, node: Node) -> bool:
        """Whether a raylet runs on a node."""
        return any(b"/raylet/raylet " in line for _, line in self.processes(node))

    def connect(self, node: Node, port: int, timeout: float = 600.0) -> socket.socket:
        """A connection to a port of a node's, as if from there."""
        return inside(node.pid, "127.0.0.1", port, timeout)

    def network_bytes(self, node: Node) -> int:
        """What has gone over a node's cable so far, both ways."""
        for line in Path(f"/proc/{node.pid}/net/dev").read_text().splitlines():
            name, _, numbers = line.partition(":")
            if name.strip() == "eth0":
                found = numbers.split()
                return int(found[0]) + int(found[8])
        raise RuntimeError("a node has no cable")

    def listening(self, node: Node) -> dict[int, bytes]:
        """The ports that are listened at on a node, each with the command line of who does."""
        ports = {}
        for kind in ("tcp", "tcp6"):
            for line in Path(f"/proc/{node.pid}/net/{kind}").read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == "0A":
                    ports[words[9]] = int(words[1].rpartition(":")[2], 16)
        found = dict.fromkeys(ports.values(), b"")
        for pid, command in self.processes(node):
            with contextlib.suppress(OSError):
                for each in Path(f"/proc/{pid}/fd").iterdir():
                    inode = str(each.readlink()).removeprefix("socket:[").removesuffix("]")
                    if inode in ports:
                        found[ports[inode]] = command
        return found

    def files(self, node: Node) -> set[str]:
        """What lies in a node's /dev/shm and among its temporary files, but for Ray's own logs.

        Ray keeps what each of its workers said for as long as its cluster runs.
        """
        root = Path(f"/proc/{node.pid}/root")
        places = [root / "dev/shm", root / "tmp/ray/tmp"]
        found = (each.relative_to(root) for place in places for each in place.rglob("*"))
        return {str(each) for each in found if "logs" not in each.parts}

    def memory(self, node: Node) -> dict[str, int]:
        """Bytes that a node's processes hold, shared pages by their shares: Ray's own, stages'."""
        held = {"ray": 0, "stage": 0, "other": 0}
        for pid, line in self.processes(node):
            kind = "stage" if line.startswith(STAGE) else "ray" if b"ray" in line else "other"
            held["stage" if b"dure serve" in line else kind] += pss_of(pid)
        return held

    def _made(self, number: int) -> Node:
        kinds = ["--fork", "--pid", "--kill-child", "--mount", "--net", "--ipc", "--mount-proc"]
        keeper = _kept("unshare", *kinds, "bash", "-c", _INIT, stdout=subprocess.PIPE)
        assert keeper.stdout is not None
        if keeper.stdout.readline() != b"ready\n":
            raise RuntimeError("a namespace cannot be made")
        node = Node(number, keeper, child_of(keeper.pid))
        _run(
            *("ip", "link", "add", f"p{number}", "netns", str(self._switch.pid), "type", "veth"),
            *("peer", "name", "eth0", "netns", str(node.pid)),
        )
        inside_it = ["nsenter", "-t", str(node.pid), "-n", "--"]
        _run(*inside_it, "ip", "addr", "add", f"{node.host}/24", "dev", "eth0")
        _run(*inside_it, sys.executable, __file__, "--sums")
        _run(*inside_it, "ip", "link", "set", "eth0", "up", "mtu", "9000")
        self._in_switch("ip", "link", "set", f"p{number}", "up", "mtu", "9000")
        return node

    def _in_switch(self, *words: str, check: bool = True) -> int:
        return _run("nsenter", "-t", str(self._switch.pid), "-n", "--", *words, check=check)


def _network_of(pid: int | str) -> int:
    return Path(f"/proc/{pid}/ns/net").stat().st_ino


def child_of(pid: int) -> int:
    """The process that unshare or nsenter has forked."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if found:
            return int(found[0])
        time.sleep(0.01)
    raise RuntimeError("a command did not start")


def inside(pid: int, host: str, port: int, timeout: float) -> socket.socket:
    """A connection out of the network of a process."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    other = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    try:
        if _LIBC.setns(other, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        try:
            return socket.create_connection((host, port), timeout=timeout)
        finally:
            _LIBC.setns(own, _CLONE_NEWNET)
    finally:
        os.close(own)
        os.close(other)


def pss_of(pid: int) -> int:
    """Bytes of memory of a process, with its share of what it has in common with others."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def _kept(*words: str, **options: Any) -> subprocess.Popen[bytes]:
    """Start what is killed when this process ends, however it does."""
    dying = ["setpriv", "--pdeathsig", "KILL", "--"]
    return subprocess.Popen([*dying, *words], start_new_session=True, **options)  # no Ctrl-C


def _run(*words: str, check: bool = True) -> int:
    done = subprocess.run(words, capture_output=True, check=False)
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.decode('utf-8', 'replace')}")
    return done.returncode


def _wait_for_network(pid: int) -> None:
    own, until = _network_of("self"), time.monotonic() + 30
    while _network_of(pid) == own:
        if time.monotonic() > until:
            raise RuntimeError("a network cannot be made")
        time.sleep(0.01)


def pass_on(seconds: float, loss: float, ports: Sequence[str]) -> None:
    """Be a switch: take frames from each port, and give them to the others so much later."""
    os.setpriority(os.PRIO_PROCESS, 0, -20)  # a switch waits for no processor
    sockets = []
    for port in ports:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_FRAMES))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
        made.bind((port, 0))
        made.setblocking(False)
        sockets.append(made)
    behind: dict[bytes, socket.socket] = {}  # which port an address was last seen at
    waiting: deque[tuple[float, bytes, socket.socket]] = deque()
    drawn = random.Random(1)
    while True:
        until = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for ready in select.select(sockets, [], [], until)[0]:
            with contextlib.suppress(OSError):  # none any more, or the cable is out
                while True:
                    frame, address = ready.recvfrom(65536)
                    if address[2] == _OUTGOING:
                        continue
                    behind[frame[6:12]] = ready
                    if drawn.random() >= loss:
                        waiting.append((time.monotonic() + seconds, frame, ready))
        while waiting and waiting[0][0] <= time.monotonic():
            _, frame, came = waiting.popleft()
            known = behind.get(frame[:6])
            for out in [known] if known is not None else sockets:
                if out is not came:
                    with contextlib.suppress(OSError):
                        out.send(frame)


def compute_sums() -> None:
    """Let this network's own card end its frames: a switch of ours gets them whole, as a cable."""
    value = ctypes.create_string_buffer(struct.pack("II", _ETHTOOL_STXCSUM, 0))
    request = struct.pack("16sP", b"eth0", ctypes.addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        fcntl.ioctl(asked, _SIOCETHTOOL, request)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sums", action="store_true")
    parser.add_argument("milliseconds", type=float, nargs="?", default=0.0)
    parser.add_argument("loss", type=float, nargs="?", default=0.0)
    parser.add_argument("ports", nargs="*")
    given = parser.parse_args()
    if given.sums:
        compute_sums()
    else:
        pass_on(given.milliseconds / 1000, given.loss, given.ports)

"""How long do hostile bodies stop a server's event loop, and how much memory do they take?

    python bench/server_attack.py --vocabulary QWEN2.5.gguf [--only PART] [--storm]

Makes a tiny model of noise with the other file's vocabulary, serves it in this process, and sends
every attack to every route that it fits, from a process of its own. A task on the event loop wakes
up every 5 ms. Prints a Markdown table: what was sent, the statuses that came back, and at most
  late: by how much the task woke up too late
  busy: the same, but no more than the CPU time of the whole process meanwhile; what other programs
        take of the machine does not count
  CPU: the CPU time of the loop's own thread between two of its wakings
  grown, worker: bytes of memory that the process, and the template's, have more at their peak
`--storm`: ordinary requests run meanwhile (those of serve_storm.py).
Needs the gguf package.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import gc
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
from attacks import ATTACKS, CHAT, FULL

TICK = 0.005
HIDDEN, LAYERS, HEADS, FEED = 64, 2, 4, 128
CONTEXT = 32768
MIB = 1 << 20


@dataclass
class Result:
    """What one attack did."""

    wall: float = 0.0
    busy: float = 0.0
    cpu: float = 0.0
    grown: int = 0
    worker: int = 0
    answers: collections.Counter[str] = field(default_factory=collections.Counter)
    seconds: float = 0.0


class Ticker:
    """Wakes up on an event loop every few milliseconds, and notes how late it is."""

    def __init__(self) -> None:
        self.wall = self.busy = self.cpu = 0.0

    async def run(self) -> None:
        """Never returns."""
        wall, all_cpu, cpu = time.perf_counter(), time.process_time(), time.thread_time()
        while True:
            await asyncio.sleep(TICK)
            now, all_now, used = time.perf_counter(), time.process_time(), time.thread_time()
            late = now - wall - TICK
            self.wall, self.cpu = max(self.wall, late), max(self.cpu, used - cpu)
            self.busy = max(self.busy, min(late, all_now - all_cpu))
            wall, all_cpu, cpu = now, all_now, used


def write_tiny(path: Path, vocabulary: Path) -> None:
    """Write a tiny llama of noise with the tokenizer of another file."""
    source = gguf.GGUFReader(vocabulary)
    size = len(source.fields["tokenizer.ggml.tokens"].data)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("noise")
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e4)
    for key, value in source.fields.items():
        if key.startswith("tokenizer."):
            if value.types[0] == gguf.GGUFValueType.ARRAY:
                writer.add_array(key, value.contents())
            else:
                writer.add_key_value(key, value.contents(), value.types[0])
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (size, HIDDEN),
        "output_norm": (HIDDEN,),
    }
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.{name}_norm": (HIDDEN,) for name in ("attn", "ffn")}
        shapes |= {f"blk.{layer}.attn_{name}": (HIDDEN, HIDDEN) for name in ("q", "k", "v")}
        shapes[f"blk.{layer}.attn_output"] = (HIDDEN, HIDDEN)
        shapes |= {f"blk.{layer}.ffn_{name}": (FEED, HIDDEN) for name in ("gate", "up")}
        shapes[f"blk.{layer}.ffn_down"] = (HIDDEN, FEED)
    for name, shape in shapes.items():
        values = rng.standard_normal(shape, np.float32) if len(shape) > 1 else np.ones(shape)
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def head(path: str, length: int) -> bytes:
    """The head of a request."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def sent(port: int, request: bytes) -> str:
    """The status of the answer to a request, and the first words of an error."""
    with socket.create_connection(("127.0.0.1", port), timeout=300) as connection:
        with contextlib.suppress(OSError):  # it answers, and closes, before it has read all
            connection.sendall(request)
        answer = b""
        with contextlib.suppress(OSError):
            while part := connection.recv(1 << 16):
                answer += part
    status = answer.split(b" ", 2)[1].decode() if answer[:5] == b"HTTP/" else "cut"
    if status != "200" and (
        found := re.search(rb'"(?:message|error)":\s?"((?:[^"\\]|\\.)*)', answer)
    ):
        return f"{status} {found.group(1)[:90].decode(errors='replace')}"
    return status


def attack(port: int, name: str, path: str, times: int) -> list[str]:
    """Send an attack several times at once; run in a process of its own."""
    if name == "1,024 slow connections":
        return slow(port)
    if name == "unfinished bodies":
        return unfinished(port)
    body = ATTACKS[name][1](path)
    data = (
        body
        if isinstance(body, bytes)
        else json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    )
    request = head(path, len(data)) + data
    answers: list[str] = []
    threads = [
        threading.Thread(target=lambda: answers.append(sent(port, request))) for _ in range(times)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def slow(port: int) -> list[str]:
    """Connections that send their head a byte at a time, and then leave."""
    open_ones = [socket.create_connection(("127.0.0.1", port)) for _ in range(1000)]
    for byte in head(CHAT, 100)[:60]:
        for each in open_ones:
            with contextlib.suppress(OSError):
                each.send(bytes([byte]))
    for each in open_ones:
        each.close()
    return ["left"]


def unfinished(port: int) -> list[str]:
    """400 bodies of 8 MB, of which the last byte does not come; then all leave."""
    open_ones: list[socket.socket] = []
    data = head(CHAT, FULL) + b" " * (FULL - 1)
    for _ in range(100):
        each = socket.create_connection(("127.0.0.1", port))
        each.settimeout(2)
        with contextlib.suppress(OSError):
            each.sendall(data)
        open_ones.append(each)
    for each in open_ones:
        each.close()
    return ["left"]


def rss(process: int | str, name: str = "VmRSS") -> int:
    """Bytes of memory of a process; 0 if there is none."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    found = re.search(rf"^{name}:\s+(\d+)", text, re.M)
    return int(found.group(1)) << 10 if found else 0


def children() -> list[str]:
    """The processes that this one has started: the template's worker, and the client."""
    tasks = Path("/proc/self/task").iterdir()
    return [each for task in tasks for each in (task / "children").read_text().split()]


async def measured(ticker: Ticker, port: int, name: str, path: str, times: int) -> Result:
    """Send one attack from a process of its own, and measure."""
    from dure import kernels  # noqa: PLC0415 - clients do not import it

    kernels.release_free_memory()
    command = [sys.executable, __file__, "--client", str(port), name, path, str(times)]
    client = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    await asyncio.sleep(0.2)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = rss("self")
    workers = [each for each in children() if each != str(client.pid)]
    worker_before = sum(map(rss, workers))
    ticker.wall = ticker.busy = ticker.cpu = 0.0
    began = time.perf_counter()
    out, _ = await client.communicate()
    await asyncio.sleep(0.05)
    grown = rss("self", "VmHWM") - before
    worker = sum(map(rss, workers)) - worker_before
    answers = collections.Counter(json.loads(out or b'["client failed"]'))
    return Result(
        ticker.wall, ticker.busy, ticker.cpu, grown, worker, answers, time.perf_counter() - began
    )


def cases(options: argparse.Namespace) -> list[tuple[str, str, int]]:
    """Every attack with its route, and how often it is sent at once."""
    listed = [(name, path, 1) for name, (paths, _) in ATTACKS.items() for path in paths]
    listed += [
        (name, path, 8)
        for name in ("a text of 7.5 MB", "65,000 empty lists", "128 tools of 450 properties")
        for path in ATTACKS[name][0][:1]
    ]
    listed += [("8 MB of no JSON", CHAT, 24), ("metadata of 8 MB", CHAT, 24)]
    listed += [("7.5 MB of 4-byte characters", CHAT, 16)]
    listed += [("1,024 slow connections", "/", 1), ("unfinished bodies", "/", 1)]
    shown = [(each, f"{each[0]} {each[1]} x{each[2]}") for each in listed]
    return [
        each
        for each, text in shown
        if re.search(options.only or "", text)
        and not (options.skip and re.search(options.skip, text))
    ]


async def run(model: Path, options: argparse.Namespace) -> None:
    """Serve, attack, and print the table."""
    from dure import LLM  # noqa: PLC0415 - clients do not import it
    from dure.server.run import Server, Settings  # noqa: PLC0415

    ready = asyncio.Event()

    def is_ready(_: LLM | None) -> None:
        gc.collect()
        gc.freeze()  # as `dure serve` does
        ready.set()

    server = Server(
        Settings(models=(str(model),), port=0, aliases=(("*", ""),)),
        lambda name: LLM(name, threads=1, context=CONTEXT),
        on_ready=is_ready,
    )
    serving = asyncio.create_task(server.serve())
    await ready.wait()
    port = server.address[1]
    ticker = Ticker()
    ticking = asyncio.create_task(ticker.run())
    storm = None
    if options.storm:
        here = Path(__file__).with_name("serve_storm.py")
        script = (
            f"import sys,asyncio; sys.path.insert(0, {str(here.parent)!r}); import serve_storm;"
            f"\nwhile True: asyncio.run(serve_storm.storm({port}, 200, 0.3, 0.5, 1))"
        )
        storm = await asyncio.create_subprocess_exec(sys.executable, "-c", script)
    await measured(ticker, port, "an ordinary question", CHAT, 1)  # what is made once is made
    columns = "sent,to,at once,answers,late ms,busy ms,CPU ms,grown MiB,worker MiB,seconds"
    print("| " + " | ".join(columns.split(",")) + " |")
    print("|---" * len(columns.split(",")) + "|")
    worst = Result()
    for name, path, times in cases(options):
        found = await measured(ticker, port, name, path, times)
        told = ", ".join(
            text if count == 1 else f"{count} x {text}" for text, count in found.answers.items()
        )
        figures = [1000 * found.wall, 1000 * found.busy, 1000 * found.cpu]
        figures += [found.grown / MIB, found.worker / MIB, found.seconds]
        shown = " | ".join(f"{each:.0f}" for each in figures)
        print(f"| {name} | {path} | {times} | {told} | {shown} |", flush=True)
        worst.wall, worst.cpu = max(worst.wall, found.wall), max(worst.cpu, found.cpu)
        worst.busy = max(worst.busy, found.busy)
        worst.grown = max(worst.grown, found.grown)
    print(
        f"\nlongest: {1000 * worst.wall:.0f} ms late, {1000 * worst.busy:.0f} ms busy, "
        f"{1000 * worst.cpu:.0f} ms of CPU; "
        f"grown by {worst.grown / MIB:.0f} MiB at most"
    )
    if storm is not None:
        storm.kill()
        await storm.wait()
    ticking.cancel()
    server.stop()
    await serving


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--client"]:
        time.sleep(0.4)  # the server takes its memory's measure meanwhile
        port, name, path, times = sys.argv[2:]
        print(json.dumps(attack(int(port), name, path, int(times))))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocabulary", type=Path, required=True, help="a GGUF file to copy from")
    parser.add_argument("--only", help="attacks whose name, route or number this expression finds")
    parser.add_argument("--skip", help="leaves out those that this expression finds")
    parser.add_argument("--storm", action="store_true", help="among ordinary requests")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "tiny.gguf"
        write_tiny(model, options.vocabulary)
        os.environ.setdefault("DURE_HOME", folder)
        asyncio.run(run(model, options))


if __name__ == "__main__":
    main()

"""Links between stages: plain sockets on which both ends prove that they know one secret.

What goes over a link is neither encrypted nor signed: a cluster trusts its network, as Ray does.
The secret keeps out whoever merely finds the port.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from dure.cluster.wire import HEAD, Frame, WireError, read_head

Address = tuple[str, int]

_NONCE = 32
_HANDSHAKE_SECONDS = 10.0
_POLL_SECONDS = 0.1


class Link:
    """One connection: frames go in at one end and come out at the other."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        self.sent_bytes = 0

    def send(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Send a frame, given in pieces. Raises OSError when the other end is gone."""
        small = b"".join(piece for piece in pieces) if _size(pieces) < 1 << 16 else None
        for piece in pieces if small is None else [small]:
            self._socket.sendall(piece)
        self.sent_bytes += _size(pieces)

    def receive(self) -> Frame:
        """Wait for the next frame. Raises OSError at the end, WireError for what is no frame."""
        kind, number, size = read_head(bytes(self._read(HEAD.size)))
        return Frame(kind, number, self._read(size))

    def close(self) -> None:
        """End the connection; whoever waits at it gets an OSError."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _read(self, size: int) -> memoryview:
        data = memoryview(bytearray(size))
        done = 0
        while done < size:
            count = self._socket.recv_into(data[done:])
            if count == 0:
                raise ConnectionError("the other stage closed the link")
            done += count
        return data


class Door:
    """Where a stage waits for the one before it."""

    def __init__(self, host: str, secret: bytes) -> None:
        """Listen on any port of `host`, an address of this machine."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.bind((host, 0))
        self._socket.listen(8)
        self._socket.settimeout(_POLL_SECONDS)
        self._secret = secret
        self.address: Address = self._socket.getsockname()[:2]

    def accept(self, epoch: int, seconds: float, over: threading.Event) -> Link:
        """Wait for the one who knows the secret and means this epoch.

        Raises TimeoutError after so many seconds, and soon after `over` is set.
        """
        until = time.monotonic() + seconds
        while time.monotonic() < until and not over.is_set():
            try:
                connection, _ = self._socket.accept()
            except TimeoutError:
                continue
            try:
                connection.settimeout(_HANDSHAKE_SECONDS)
                _welcome(connection, self._secret, epoch)
                connection.settimeout(None)
                return Link(connection)
            except (OSError, WireError):  # a stranger, or one of an earlier epoch
                connection.close()
        raise TimeoutError("nobody came")

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()


def connect(address: Address, secret: bytes, epoch: int, seconds: float = 10.0) -> Link:
    """Connect to the door of the next stage, which may not be waiting yet.

    Raises OSError, or WireError for one who is not it.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            return _connected(address, secret, epoch, max(0.1, until - time.monotonic()))
        except (OSError, WireError):  # it may still be waiting for one of an earlier epoch
            if time.monotonic() > until:
                raise
            time.sleep(_POLL_SECONDS)


def _connected(address: Address, secret: bytes, epoch: int, seconds: float) -> Link:
    connection = socket.create_connection(address, timeout=seconds)
    try:
        ours = secrets.token_bytes(_NONCE)
        connection.sendall(epoch.to_bytes(8, "little") + ours)
        theirs, proof = _exactly(connection, _NONCE), _exactly(connection, 32)
        if not hmac.compare_digest(proof, _proof(secret, b"door", epoch, ours, theirs)):
            raise WireError("Who answered does not know this cluster's secret.")
        connection.sendall(_proof(secret, b"guest", epoch, theirs, ours))
        if _exactly(connection, 1) != b"!":
            raise WireError("The next stage did not take the link.")
        connection.settimeout(None)
    except BaseException:
        connection.close()
        raise
    return Link(connection)


def _welcome(connection: socket.socket, secret: bytes, epoch: int) -> None:
    asked = int.from_bytes(_exactly(connection, 8), "little")
    theirs, ours = _exactly(connection, _NONCE), secrets.token_bytes(_NONCE)
    connection.sendall(ours + _proof(secret, b"door", asked, theirs, ours))
    proof = _exactly(connection, 32)
    known = hmac.compare_digest(proof, _proof(secret, b"guest", asked, ours, theirs))
    if not known or asked != epoch:
        raise WireError("Somebody knocked who is not the stage before.")
    connection.sendall(b"!")


def _proof(secret: bytes, role: bytes, epoch: int, first: bytes, second: bytes) -> bytes:
    message = role + epoch.to_bytes(8, "little") + first + second
    return hmac.new(secret, message, "sha256").digest()


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise ConnectionError("the link ended")
        data += piece
    return data


def _size(pieces: Sequence[bytes | memoryview]) -> int:
    return sum(map(len, pieces))

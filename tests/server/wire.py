"""Bytes of a connection, as a test reads them."""

from __future__ import annotations

import socket


def read_until(connection: socket.socket, text: bytes) -> bytes:
    """What came up to and with `text`, and maybe more; fails if the server ends before."""
    received = b""
    while text not in received:
        part = connection.recv(65536)
        assert part, "the server closed the connection"
        received += part
    return received


def rest(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection, or resets it; it is closed then."""
    received = b""
    try:
        while part := connection.recv(65536):
            received += part
    except ConnectionResetError:
        pass
    connection.close()
    return received

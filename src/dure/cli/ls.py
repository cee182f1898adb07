"""dure ls: dure list under the name of other tools."""

from __future__ import annotations

from dure.cli.list import command

__all__ = ["command"]

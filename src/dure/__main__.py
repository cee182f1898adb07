"""`python -m dure`: the same as the `dure` command."""

from __future__ import annotations

from dure.cli import main

if __name__ == "__main__":
    main()

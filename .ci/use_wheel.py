"""Checks an installed dure: its kernels multiply, on every instruction set of this machine."""

import os
import subprocess
import sys

PRODUCT = """
import numpy as np
from dure import kernels
x = np.linspace(-1, 1, 256, dtype=np.float32).reshape(2, 128)
matrix = kernels.Matrix("Q8_0", 2, 128)
matrix.fill(0, kernels.quantize_blocks("Q8_0", x))
print(kernels.isa(), kernels.matmul(x, matrix).tobytes().hex())
"""


def main() -> None:
    """Print the instruction sets, and fail if they do not give the same bits."""
    from dure import kernels  # noqa: PLC0415 - the script is read where dure is not installed, too

    found = {}
    for isa in kernels.available_isas():
        run = [sys.executable, "-c", PRODUCT]
        environment = {**os.environ, "DURE_ISA": isa}
        out = subprocess.run(run, env=environment, check=True, capture_output=True, text=True)
        used, bits = out.stdout.split()
        if used != isa:
            sys.exit(f"{isa} was asked for, and {used} used")
        found[isa] = bits
    if len({*found.values()}) != 1:
        sys.exit(f"the instruction sets differ: {found}")
    print(f"the same bits from {', '.join(found)}")


main()

"""How estimated figures are written for a person: with as many digits as they are worth."""

from __future__ import annotations

import math

JOULES_PER_KWH = 3.6e6


def significant(value: float, digits: int = 3) -> str:
    """Format a number with so many significant digits, never with an exponent: 1,230; 0.0850."""
    if not value or not math.isfinite(value):
        return f"{value:g}"
    places = digits - 1 - int(f"{value:.{digits - 1}e}".partition("e")[2])
    return f"{round(value, places):,.{max(0, places)}f}"


def kilowatt_hours(joules: float) -> str:
    """Format joules as kilowatt-hours."""
    return f"{significant(joules / JOULES_PER_KWH)} kWh"

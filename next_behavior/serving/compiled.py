"""Functions over numbers that are compiled at their first call.

What was compiled is kept in ~/.cache/next_behavior, or in NUMBA_CACHE_DIR, so the next process reads it in half a
second. It lies under a digest of the code: numba sees a change of a function's file, but not one of a file that is
called from there. Where nothing can be written, each process compiles anew.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numba import config, njit

from next_behavior.serving.export import cache_folder

logger = logging.getLogger(__name__)

# Sums may be taken in any order, so that they are vectors; infinities and NaN keep their meaning.
REORDERED = {"contract", "reassoc", "nsz", "arcp"}
# Of the exponential: where float32 ends, and ln 2 in two parts, the first of few bits.
LEAST_EXPONENT, LOG2_E, LN2_HIGH, LN2_LOW = (np.float32(x) for x in (-104.0, 1.44269504, 0.693359375, -2.12194440e-4))
TERMS = tuple(np.float32(x) for x in (1.98756915e-4, 1.39819995e-3, 8.33345191e-3, 4.16657959e-2, 1.66666655e-1, 0.5))
C6, C5, C4, C3, C2, C1 = TERMS
ONE, HALF, LEAST_POWER, BIAS = np.float32(1), np.float32(0.5), np.int32(-127), np.int32(127)
MANTISSA = np.int32(23)


def compiled(function: Callable[..., Any] | None = None, *, inline: bool = False) -> Any:
    """A decorator: the function, compiled. `inline` makes it a part of those that call it."""
    if function is None:
        return lambda each: compiled(each, inline=inline)
    settings = vars(config)  # its names come from the environment
    options: dict[str, Any] = {
        "fastmath": REORDERED,
        "error_model": "numpy",
        "nogil": True,
        "inline": "always" if inline else "never",
    }
    before = settings["CACHE_DIR"]
    settings["CACHE_DIR"] = compiled_folder(before)
    try:
        return njit(cache=True, **options)(function)
    except (RuntimeError, OSError):  # numba's "no locator available" is the first
        logger.warning("what is compiled cannot be kept: set NUMBA_CACHE_DIR to a folder that can be written")
        return njit(**options)(function)
    finally:
        settings["CACHE_DIR"] = before


@cache
def compiled_folder(wanted: str) -> str:
    """Where to keep what is compiled, in a wanted folder if one is given."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        code = path.read_bytes()
        if b"@compiled" in code:
            digest.update(code)
    return str((Path(wanted) if wanted else cache_folder() / "compiled") / digest.hexdigest()[:16])


@compiled(inline=True)
def exponential(x: Any) -> Any:
    """exp(x) in float32, of vectors where it stands in a loop; its relative error is below 2e-7, zero below -88.

    A polynomial over |f| <= ln 2 / 2, x = n ln 2 + f, as in Cephes' expf.
    """
    x = max(x, LEAST_EXPONENT)
    n = np.floor(x * LOG2_E + HALF)
    f = x - n * LN2_HIGH
    f = f - n * LN2_LOW
    series = ((((C6 * f + C5) * f + C4) * f + C3) * f + C2) * f + C1
    power = (max(np.int32(n), LEAST_POWER) + BIAS) << MANTISSA
    return (series * f * f + f + ONE) * np.int32(power).view(np.float32)

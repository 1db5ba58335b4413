"""What is fastest on which kind of processor: measured once by `studies/processors.py`, and looked up ever after.

A training times nothing. Two ways of one sum differ by rounding, so a choice by a timing would give a seed other bits from run to
run.
"""

import functools
import re
from pathlib import Path
from typing import Final, Literal

from torch import Tensor

Way = Literal["plain", "unfold", "dense"]  # of a 3x3 convolution (wbc_model/network/convolution.py)
CPUINFO: Final = Path("/proc/cpuinfo")
KINDS: Final = ("amx_bf16", "avx512_bf16")  # by what they multiply bfloat16 with, the best first; all others are `other`

# By the map's side and the stride; what is not named is plain. No AMX processor ran the study yet: on one, the last stage's
# convolutions took 71 ms plain and 24 ms unfolded (decision 062).
TABLE: Final[dict[str, dict[tuple[int, int], Way]]] = {
    "amx_bf16": {(1, 1): "dense", (2, 1): "unfold", (2, 2): "dense", (4, 2): "unfold"},
    "avx512_bf16": {(1, 1): "dense", (2, 1): "dense", (2, 2): "dense", (4, 2): "unfold"},
    "other": {(1, 1): "dense", (2, 1): "dense", (2, 2): "dense", (4, 2): "unfold"},
}


@functools.cache
def kind() -> str:
    """The kind of this machine's processor: the first of KINDS among its features, or `other`."""
    return kind_of(CPUINFO.read_text(encoding="utf-8") if CPUINFO.is_file() else "")


def kind_of(cpuinfo: str) -> str:
    """The kind of a processor by Linux's description of it."""
    features = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    has = set(features[1].split()) if features else set()
    return next((name for name in KINDS if name in has), "other")


def way(x: Tensor, stride: int) -> Way:
    """How a 3x3 convolution of the square maps `x` (N, C, S, S) is computed on its device."""
    return TABLE[kind()].get((x.shape[2], stride), "plain") if x.device.type == "cpu" else "plain"

"""How many tokens go through the head at once, from a budget of memory.

The working memory of ``head_statistics`` is that of one chunk: C tokens times V logits times some
bytes per logit, beside what is O(N D). The budget is a tenth of what the machine lets a process
work with, and at most as much as still makes the products faster: from some 32 tokens on (128 on a
GPU) reading the head is no longer what takes the time. A head that trains gets four times as much,
since each chunk adds to a gradient of the head's size.
"""

from __future__ import annotations

import os
from functools import cache

import mlx.core as mx

GIB = 1 << 30
SHARE = 0.1
MOST_ON_CPU, MOST_ON_METAL = GIB // 8, GIB // 2
# Bytes per logit at the peak of a chunk. On the CPU measured (benchmarks/head.py prints it); with
# Metal's kernels counted: the logits and the tail, each in the model's type, twice, because the
# next chunk may be queued while one still runs.
CPU_BYTES = {"tail": 21, "nograd": 21, "recompute": 36}
METAL_BYTES = {"tail": 16, "nograd": 8, "recompute": 32}
SMALLEST, LARGEST, STEP = 8, 1024, 32


@cache
def working_memory() -> int:
    """Bytes that the machine lets a process use: Metal's recommended working set, or all memory."""
    info = mx.device_info() if mx.metal.is_available() else {}
    recommended = info.get("max_recommended_working_set_size")
    if recommended:
        return int(recommended)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def budget_bytes(memory: int | None = None, *, mode: str = "tail", metal: bool = False) -> int:
    """The memory that one chunk may take; ``memory`` defaults to this machine's."""
    most = (MOST_ON_METAL if metal else MOST_ON_CPU) * (4 if mode == "recompute" else 1)
    return min(most, int(SHARE * (working_memory() if memory is None else memory)))


def chunk_tokens(
    vocabulary: int, *, mode: str = "tail", metal: bool = False, budget: int | None = None
) -> int:
    """Tokens per chunk, from 8 to 1,024, a multiple of 32 from 32 on.

    Args:
        vocabulary: V.
        mode: of ``head_statistics``.
        metal: whether Metal's kernels do the work.
        budget: bytes for one chunk; default ``budget_bytes()``. Eight tokens are the least,
            whatever the budget: with a vocabulary of 262,144 they take 42 to 72 MiB.
    """
    per_token = (METAL_BYTES if metal else CPU_BYTES)[mode] * vocabulary
    budget = budget_bytes(mode=mode, metal=metal) if budget is None else budget
    fit = budget // per_token
    if fit >= STEP:
        fit -= fit % STEP
    return max(SMALLEST, min(LARGEST, fit))

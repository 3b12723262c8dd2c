"""How a process on Linux treats memory that was freed."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let this process keep what tensors free, instead of fetching it anew from the kernel in every forward pass.

    glibc gives large blocks back as soon as they are freed. A network on a CPU may then spend a sixth to a half of its
    time on page faults, the more the larger the batch (docs/speed.md). The commands of `srnn-zoo` call this; a program
    of your own may, once, before it loads a model. The process then stays about as large as it was at its peak: up to
    2 GiB at the end of its memory are kept.

    Returns:
        whether anything was changed: not on another system or C library than glibc's, and not where the environment
        has settings of its own (`MALLOC_…`, `GLIBC_TUNABLES`).

    Examples:
        >>> srnn_zoo.keep_freed_memory()
        >>> model = srnn_zoo.for_inference(srnn_zoo.create_model("srnn_resnet18", pretrained=True).eval())
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))

"""How much memory is free, and whether an error says that there was too little."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import psutil


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception reports OOM of the device or the host."""
    # torch.OutOfMemoryError, a RuntimeError, has the first; statuses of cuBLAS and cuDNN have the last two
    words = ("out of memory", "can't allocate memory", "_ALLOC_FAILED", "_ALLOCATION_FAILED")
    reported = isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in words)
    return reported or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def available_bytes(device_type: str) -> int:
    """Free memory of a device. On a CPU: what the system can give without swapping, within the container's limit."""
    if device_type != "cpu":
        import torch

        if device_type == "cuda":
            reserved = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()  # by PyTorch, for its next tensors
            return torch.cuda.mem_get_info()[0] + reserved
        if device_type == "mps":
            return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    free = psutil.virtual_memory().available
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())  # "max" without a limit
        lines = (group / "memory.stat").read_text().splitlines()
        used = next(int(line.split()[1]) for line in lines if line.startswith("anon "))
        return min(free, limit - used)
    except (OSError, ValueError, StopIteration):
        return free


def give_back_heap() -> None:
    """Give memory that was freed back to the system; glibc may keep it (`runtime.device.keep_heap`), in holes that
    the next large tensor does not fit into."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)

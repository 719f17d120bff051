"""Measure the peak memory of a training, and the free memory, of the GPU or, without one, of the host."""

import ctypes
from pathlib import Path

import torch

from finetune_trainer.models import device

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
CGROUP = Path("/sys/fs/cgroup")
OLD_CGROUP = CGROUP / "memory"


class MemoryMeter:
    """Measure the peak memory since the meter was created."""

    def __init__(self) -> None:
        """Start to measure."""
        device.free_memory()
        self._before = 0
        if device.has_gpu():
            torch.cuda.reset_peak_memory_stats()
            return
        _trim_heap()
        try:
            RESET.write_text("5", encoding="ascii")  # reset the peak: proc_pid_clear_refs(5)
            self._before = _read_bytes(STATUS, "VmRSS")
        except OSError:
            self._before = -1

    def peak(self) -> int | None:
        """Return the peak in bytes; None if it cannot be measured.

        With a GPU this is the memory of PyTorch's tensors, without one the growth of the process.
        """
        if device.has_gpu():
            return torch.cuda.max_memory_allocated()
        return max(_read_bytes(STATUS, "VmHWM") - self._before, 0) if self._before >= 0 else None


def _trim_heap() -> None:
    """Return freed memory to the system (glibc's malloc_trim(3)).

    Otherwise the process would not grow when the next training allocates that memory again.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def free_bytes() -> int | None:
    """Return how many bytes this process may still allocate; None if that is not known.

    The limit is that of the machine or of the container, whichever is lower.
    """
    machine = Path("/proc/meminfo")
    free = [_read_bytes(machine, "MemAvailable")] if machine.is_file() else []
    for limit, used, name in (
        (CGROUP / "memory.max", CGROUP / "memory.stat", "anon"),
        (OLD_CGROUP / "memory.limit_in_bytes", OLD_CGROUP / "memory.stat", "rss"),
    ):
        if limit.is_file() and (text := limit.read_text(encoding="ascii").strip()) != "max":
            # The rest of the container's memory is the cache of its files, which the kernel frees when it is needed.
            free.append(int(text) - _read_number(used, name))
    return min(free, default=None)


def _read_bytes(path: Path, name: str) -> int:
    """Return a size in bytes from a file of /proc, which has it in kilobytes."""
    return 1024 * _read_number(path, f"{name}:")


def _read_number(path: Path, name: str) -> int:
    """Return the number after a name at the start of a line; 0 if there is no such line."""
    lines = (line.split() for line in path.read_text(encoding="ascii").splitlines())
    return next((int(words[1]) for words in lines if words and words[0] == name), 0)

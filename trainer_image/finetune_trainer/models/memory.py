"""How much memory a training takes at its highest moment, and how much there is: of the GPU, or without one of this process."""

import ctypes
from pathlib import Path

import torch

from finetune_trainer.models import device

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
CGROUP = Path("/sys/fs/cgroup")
OLD_CGROUP = CGROUP / "memory"


class MemoryMeter:
    """Measures from the moment at which it is made."""

    def __init__(self) -> None:
        device.free_memory()
        self._before = 0
        if device.has_gpu():
            torch.cuda.reset_peak_memory_stats()
            return
        _give_back()
        try:
            RESET.write_text("5", encoding="ascii")  # Linux's highest mark begins anew: proc_pid_clear_refs(5)
            self._before = _kilobytes(STATUS, "VmRSS")
        except OSError:
            self._before = -1

    def peak(self) -> int | None:
        """Bytes since then: of the GPU what PyTorch's tensors took at most, without one by how much the process grew; None where that cannot be known."""
        if device.has_gpu():
            return torch.cuda.max_memory_allocated()
        return max(_kilobytes(STATUS, "VmHWM") - self._before, 0) if self._before >= 0 else None


def _give_back() -> None:
    """Have glibc return what was freed (malloc_trim(3)): a process that has kept it does not grow when the next training takes it again."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def free_bytes() -> int | None:
    """Bytes that this process may still take of the machine, and of its container's limit; None where that cannot be known."""
    machine = Path("/proc/meminfo")
    found = [_kilobytes(machine, "MemAvailable")] if machine.is_file() else []
    for limit, used, name in (
        (CGROUP / "memory.max", CGROUP / "memory.stat", "anon"),
        (OLD_CGROUP / "memory.limit_in_bytes", OLD_CGROUP / "memory.stat", "rss"),
    ):
        if limit.is_file() and (text := limit.read_text(encoding="ascii").strip()) != "max":
            # the rest of what the container uses is the cache of its files, which gives way
            found.append(int(text) - _number(used, name))
    return min(found, default=None)


def _kilobytes(path: Path, name: str) -> int:
    return 1024 * _number(path, f"{name}:")


def _number(path: Path, name: str) -> int:
    """The number behind a name at the beginning of a line; 0 without one."""
    lines = (line.split() for line in path.read_text(encoding="ascii").splitlines())
    return next((int(words[1]) for words in lines if words and words[0] == name), 0)

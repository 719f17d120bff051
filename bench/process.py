"""Read from /proc what a process uses."""

from pathlib import Path


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds that the process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def memory_mib(pid: int, field: str = "VmRSS") -> float:
    """Return the resident memory of the process in MiB: ``VmRSS`` now, ``VmHWM`` at its peak."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith(field)]
    return int(line.split()[1]) / 1024

"""Start, find, check and stop the processes of a cluster, by pid, start time and boot, never by name."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from devcluster.errors import DevClusterError

HEALTHY_WITHIN_SECONDS = 90.0
ADOPT_WITHIN_SECONDS = 5.0
STOP_WITHIN_SECONDS = 10.0
# A Go program that panics writes the reason some 25 lines before its end.
LOG_TAIL_LINES = 30

# The shell writes its pid and becomes the program, so that the process is recorded even if its starter dies.
_RECORD_AND_EXEC = """
read -r boot < /proc/sys/kernel/random/boot_id
read -r stat < /proc/$$/stat
printf '%s\\n%s\\n' "$boot" "$stat" > "$0.new" && mv "$0.new" "$0" && exec "$@"
"""


@dataclass(frozen=True)
class Daemon:
    """A long-running process of a cluster.

    `problem` returns None while the process works, else a text that says what is wrong. `configuration` is the content
    of the files with which the process is started: if it or the command line changes, `ensure` restarts the process.
    """

    name: str
    argv: Sequence[str]
    problem: Callable[[], str | None]
    environment: Mapping[str, str] = field(default_factory=dict)
    configuration: str = ""

    def fingerprint(self) -> str:
        """Return a hash of what the process is started with."""
        return hashlib.sha256(
            json.dumps([list(self.argv), dict(self.environment), self.configuration]).encode()
        ).hexdigest()


def ensure(state_dir: Path, daemons: Sequence[Daemon]) -> list[str]:
    """Start those of `daemons` that do not run or are not healthy; return the names of those started.

    Raises:
        DevClusterError: One does not come up; the message has the end of its log.
    """
    started = [daemon for daemon in daemons if not _keeps_running(state_dir, daemon)]
    for daemon in started:
        stop(state_dir, daemon.name)
        _start(state_dir, daemon)
    for daemon in started:
        _await_healthy(state_dir, daemon)
    return [daemon.name for daemon in started]


def pid_of(state_dir: Path, name: str) -> int | None:
    """Return the pid of the recorded process `name` while that very process lives, else None."""
    record = recorded(state_dir, name)
    return record[0] if record is not None and start_time(record[0]) == record[1] else None


def recorded(state_dir: Path, name: str) -> tuple[int, str] | None:
    """Return the recorded pid and start time of the process `name`; None if it was not started in this boot."""
    try:
        boot, stat = _record(state_dir, name).read_text().splitlines()
    except (FileNotFoundError, ValueError):
        return None
    if boot != Path("/proc/sys/kernel/random/boot_id").read_text().strip():
        return None
    return int(stat.split(" ", 1)[0]), _fields(stat)[1]


def start_time(pid: int) -> str | None:
    """Return when the process started (ticks since boot); None where it has ended."""
    try:
        state, started = _fields(Path(f"/proc/{pid}/stat").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else started


def names(state_dir: Path) -> list[str]:
    """Return the names of all processes ever started and not stopped since, in the order of their names."""
    return sorted(record.stem for record in (state_dir / "run").glob("*.pid"))


def stop(state_dir: Path, name: str, *, gently: bool = True) -> None:
    """End the process `name`, if it runs: by SIGTERM first when `gently`, then by SIGKILL.

    Each signal has ten seconds to end it.

    Raises:
        DevClusterError: The process does not end even by SIGKILL.
    """
    for signal_number, patience in ((signal.SIGTERM, STOP_WITHIN_SECONDS), (signal.SIGKILL, STOP_WITHIN_SECONDS)):
        if signal_number == signal.SIGTERM and not gently:
            continue
        pid = pid_of(state_dir, name)
        if pid is None:
            break
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal_number)
            os.kill(pid, signal.SIGCONT)
        deadline = time.monotonic() + patience
        while pid_of(state_dir, name) is not None and time.monotonic() < deadline:
            time.sleep(0.02)
    if pid_of(state_dir, name) is not None:
        raise DevClusterError(
            f"{name} (pid {pid_of(state_dir, name)}) does not end even by SIGKILL: see its state in /proc"
        )
    _record(state_dir, name).unlink(missing_ok=True)


def log_file(state_dir: Path, name: str) -> Path:
    """Return where the process `name` writes its output."""
    return state_dir / "logs" / f"{name}.log"


def log_tail(state_dir: Path, name: str) -> str:
    """Return the last lines of a process's log and where the rest is, for an error message."""
    file = log_file(state_dir, name)
    lines = file.read_text(errors="replace").splitlines() if file.exists() else []
    tail = "\n".join(f"    {line[:400]}" for line in lines[-LOG_TAIL_LINES:]) or "    (empty)"
    return f"the end of {file}:\n{tail}"


def _keeps_running(state_dir: Path, daemon: Daemon) -> bool:
    """Return whether the process runs as it is described and is healthy, so that it needs no restart."""
    fingerprint = state_dir / "run" / f"{daemon.name}.fingerprint"
    if (
        pid_of(state_dir, daemon.name) is None
        or not fingerprint.exists()
        or fingerprint.read_text() != daemon.fingerprint()
    ):
        return False
    deadline = time.monotonic() + ADOPT_WITHIN_SECONDS
    while daemon.problem() is not None:
        if time.monotonic() > deadline or pid_of(state_dir, daemon.name) is None:
            return False
        time.sleep(0.1)
    return True


def _start(state_dir: Path, daemon: Daemon) -> None:
    record = _record(state_dir, daemon.name)
    record.parent.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    log = log_file(state_dir, daemon.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    (record.parent / f"{daemon.name}.fingerprint").write_text(daemon.fingerprint())
    with log.open("ab") as output:
        # setsid forks: the process is nobody's child, so that no caller has to reap it.
        subprocess.run(
            ["setsid", "--fork", "sh", "-c", _RECORD_AND_EXEC, str(record), *daemon.argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **daemon.environment},
            check=True,
        )
    deadline = time.monotonic() + STOP_WITHIN_SECONDS
    while not record.exists():
        if time.monotonic() > deadline:
            raise DevClusterError(f"{daemon.name} could not be started; {log_tail(state_dir, daemon.name)}")
        time.sleep(0.005)


def _await_healthy(state_dir: Path, daemon: Daemon) -> None:
    deadline = time.monotonic() + HEALTHY_WITHIN_SECONDS
    while (problem := daemon.problem()) is not None:
        if pid_of(state_dir, daemon.name) is None:
            raise DevClusterError(f"{daemon.name} ended right after its start; {log_tail(state_dir, daemon.name)}")
        if time.monotonic() > deadline:
            raise DevClusterError(
                f"{daemon.name} runs but is not healthy after {HEALTHY_WITHIN_SECONDS:.0f} s ({problem}); "
                f"{log_tail(state_dir, daemon.name)}"
            )
        time.sleep(0.05)
    # Another program may answer on the port, and our process may have ended because the port was taken.
    if pid_of(state_dir, daemon.name) is None:
        raise DevClusterError(f"{daemon.name} ended right after its start; {log_tail(state_dir, daemon.name)}")


def _record(state_dir: Path, name: str) -> Path:
    return state_dir / "run" / f"{name}.pid"


def _fields(stat: str) -> tuple[str, str]:
    """Return state and start time (ticks since boot) from /proc/PID/stat, whose second field may contain blanks."""
    after_name = stat.rsplit(")", 1)[1].split()
    return after_name[0], after_name[19]

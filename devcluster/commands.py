"""Run programs, show the end of their output when they fail, and end all of them when the work is cancelled."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from devcluster.errors import DevClusterError

TAIL_LINES = 25

_running: set[subprocess.Popen[str]] = set()
_lock = threading.Lock()
_cancelled = threading.Event()


def run(
    command: Sequence[str],
    *,
    directory: Path | None = None,
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
    on_line: Callable[[str], None] | None = None,
    remedy: str = "",
) -> str:
    """Run a program to its end, and return its standard and its error output in the order of writing.

    Args:
        command: The program and its arguments.
        directory: Where it runs; by default here.
        environment: Variables in addition to our own.
        log: A file that receives the output as it comes.
        on_line: Receives each line of output as it comes.
        remedy: What a person can do about a failure.

    Raises:
        DevClusterError: The program failed (with the end of its output), or `cancel` ended it.
    """
    if _cancelled.is_set():
        raise DevClusterError("stopped, because another step failed")
    # A session of its own, so that the program and all that it started can be ended together.
    process = subprocess.Popen(
        command,
        cwd=directory,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    with _lock:
        _running.add(process)
    try:
        output = _follow(process, log, on_line)
        status = process.wait()
    except BaseException:
        _end(process)
        raise
    finally:
        with _lock:
            _running.discard(process)
    if status != 0:
        raise DevClusterError(_failure(command, status, output, log, remedy))
    return output


def cancel() -> None:
    """End all programs that `run` has started, and let it start no more until `resume`."""
    with _lock:
        _cancelled.set()
        running = list(_running)
    for process in running:
        _end(process)


def resume() -> None:
    """Let `run` start programs again."""
    _cancelled.clear()


def _follow(process: subprocess.Popen[str], log: Path | None, on_line: Callable[[str], None] | None) -> str:
    lines = []
    with process, (log or Path(os.devnull)).open("w") as file:
        for line in process.stdout or ():
            lines.append(line)
            file.write(line)
            file.flush()
            if on_line:
                on_line(line.rstrip("\n"))
    return "".join(lines)


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _failure(command: Sequence[str], status: int, output: str, log: Path | None, remedy: str) -> str:
    if _cancelled.is_set():
        return "stopped, because another step failed"
    command_line = " ".join([Path(command[0]).name, *command[1:]])
    lines = [f"`{command_line}` failed with exit status {status}:", *output.splitlines()[-TAIL_LINES:]]
    if log:
        lines.append(f"The full log: {log}")
    if remedy:
        lines.append(remedy)
    return "\n".join(lines)

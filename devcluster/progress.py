"""Show which steps run and which wait: live on a terminal, plain lines in a pipe. Always on standard error."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

HEARTBEAT_SECONDS = 30.0
CONSOLE = Console(stderr=True, highlight=False)


@dataclass
class _Step:
    title: str
    hint: str
    started: float = field(default_factory=time.monotonic)
    detail: str = ""
    spinner: Spinner = field(default_factory=lambda: Spinner("dots"))

    def __str__(self) -> str:
        notes = ", ".join(filter(None, (self.detail, self.hint)))
        return f"{self.title} ({notes})" if notes else self.title

    def seconds(self) -> float:
        return time.monotonic() - self.started


class _Display:
    """Holds the steps of this process and draws them. Threads share it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._running: list[_Step] = []
        self._waiting: list[str] = []
        self._live: Live | None = None
        self._heartbeat: threading.Timer | None = None

    def start(self, step: _Step) -> None:
        with self._lock:
            self._running.append(step)
            if len(self._running) > 1:
                return
            if CONSOLE.is_terminal:
                self._live = Live(get_renderable=self._rows, console=CONSOLE, transient=True, refresh_per_second=4)
                self._live.start()
            else:
                self._schedule_heartbeat()

    def end(self, step: _Step, *, failed: bool) -> None:
        with self._lock:
            self._running.remove(step)
            if not self._running:
                self._stop()
            if CONSOLE.is_terminal:
                mark = "[red]✗[/]" if failed else "[green]✓[/]"
                CONSOLE.print(f"{mark} {step.title} [dim]{step.seconds():.1f} s[/]")
            else:
                say(f"{step.title}: {'failed after' if failed else 'done in'} {step.seconds():.1f} s")

    def expect(self, title: str) -> None:
        with self._lock:
            self._waiting.append(title)

    def forget(self, title: str) -> None:
        with self._lock:
            if title in self._waiting:
                self._waiting.remove(title)

    def _stop(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None
        if self._heartbeat:
            self._heartbeat.cancel()
            self._heartbeat = None

    def _rows(self) -> Group:
        # This must not take our lock: rich calls it under its own lock, for which a holder of ours may wait.
        table = Table.grid(padding=(0, 1))
        for step in list(self._running):
            table.add_row(step.spinner, str(step), Text(_clock(step.seconds()), style="cyan"))
        waiting = list(self._waiting)
        rows: list[Table | Text] = [table]
        if waiting:
            rows.append(Text(f"  waiting: {', '.join(waiting)}", style="dim"))
        return Group(*rows)

    def _schedule_heartbeat(self) -> None:
        self._heartbeat = threading.Timer(HEARTBEAT_SECONDS, self._beat)
        self._heartbeat.daemon = True
        self._heartbeat.start()

    def _beat(self) -> None:
        with self._lock:
            if not self._running:
                return
            for step in self._running:
                say(f"{step}: {step.seconds():.0f} s so far")
            if self._waiting:
                say(f"waiting: {', '.join(self._waiting)}")
            self._schedule_heartbeat()


_display = _Display()


@contextmanager
def step(title: str, hint: str = "") -> Iterator[Callable[[str], None]]:
    """Show `title` while the block runs, and its duration when it ends. Steps of several threads are shown together.

    Args:
        title: What is done, for instance "building kubelet".
        hint: Further information for the person who waits, such as the usual duration.

    Yields:
        A function that shows how far the step is.
    """
    new_step = _Step(title, hint)

    def show(detail: str) -> None:
        new_step.detail = detail

    _display.start(new_step)
    failed = True
    try:
        yield show
        failed = False
    finally:
        _display.end(new_step, failed=failed)


@contextmanager
def waiting(title: str) -> Iterator[None]:
    """Show during the block that a step waits for others."""
    _display.expect(title)
    try:
        yield
    finally:
        _display.forget(title)


def say(line: str) -> None:
    """Write one plain line to standard error."""
    if CONSOLE.is_terminal:
        CONSOLE.print(line, markup=False, soft_wrap=True)
        return
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"

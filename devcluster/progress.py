"""Shows long steps with their elapsed time: a live line on a terminal, plain lines in a pipe. Always on standard error."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

HEARTBEAT_SECONDS = 30.0


@contextmanager
def step(title: str, hint: str = "") -> Iterator[None]:
    """Show `title` (and `hint`, such as the usual duration) while the block runs, and how long it took when it ends.

    Steps must not be nested: a terminal has one live line.
    """
    console = Console(stderr=True, highlight=False)
    started = time.monotonic()
    shown = f"{title} ({hint})" if hint else title
    outcome = "failed after"
    try:
        if console.is_terminal:
            with Progress(
                SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True
            ) as bar:
                bar.add_task(shown, total=None)
                yield
        else:
            with _heartbeat(shown, started):
                yield
        outcome = "done in"
    finally:
        mark = "[green]✓[/]" if outcome == "done in" else "[red]✗[/]"
        taken = time.monotonic() - started
        if console.is_terminal:
            console.print(f"{mark} {title} [dim]{taken:.1f} s[/]")
        else:
            say(f"{title}: {outcome} {taken:.1f} s")


def say(line: str) -> None:
    """Write one plain line for the person who waits."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


@contextmanager
def _heartbeat(title: str, started: float) -> Iterator[None]:
    finished = threading.Event()

    def beat() -> None:
        while not finished.wait(HEARTBEAT_SECONDS):
            say(f"{title}: {time.monotonic() - started:.0f} s so far")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()

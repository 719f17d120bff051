"""Show a running training on standard error: the log, and on a terminal a progress bar below it."""

import logging
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from finetune_api.messages import ProgressReport
from finetune_api.timestamps import format_duration
from finetune_trainer.runtime.logs import SHOWN_AS_BAR
from finetune_trainer.session.progress import Reporter


class Screen(Reporter):
    """Shows each progress report, and sends it nowhere."""

    def __init__(self) -> None:
        """Show a bar only on a terminal."""
        super().__init__(None, Path())
        self._console = Console(stderr=True)
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[details]}")
        self._bar = Progress(*columns, console=self._console) if self._console.is_terminal else None
        self._task: TaskID | None = None
        self.handler = LogHandler(self._console) if self._bar else logging.StreamHandler(sys.stderr)

    def submit(self, report: ProgressReport) -> None:
        """Move the bar."""
        if self._bar is None:
            return
        progress = report.progress
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task("training", total=progress.total_steps, details="")
        details = [f"step {progress.step}/{progress.total_steps}"]
        if progress.loss is not None:
            details.append(f"loss {progress.loss:.3f}")
        if progress.tokens_per_second is not None:
            details.append(f"{progress.tokens_per_second:,.0f} tok/s")
        if progress.eta_seconds:
            details.append(f"{format_duration(progress.eta_seconds)} left")
        self._bar.update(self._task, completed=progress.step, details=" · ".join(details))
        if progress.step >= progress.total_steps:
            self.close()

    def close(self) -> None:
        """Stop the bar."""
        if self._bar is not None:
            self._bar.stop()


class LogHandler(logging.Handler):
    """Prints log lines above the bar, except those that the bar shows already."""

    def __init__(self, console: Console) -> None:
        """Print to ``console``."""
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line."""
        if not hasattr(record, SHOWN_AS_BAR):
            self._console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)

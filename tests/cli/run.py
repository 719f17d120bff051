"""Run the command line as a user does: as a process, with its output in pipes."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

COMMAND = [sys.executable, "-m", "finetune_cli.main"]


@dataclass(frozen=True)
class Ran:
    """Exit status and output of the command line."""

    code: int
    out: str
    err: str


def finetune(*arguments: str, stdin: str | None = None, environment: Mapping[str, str] | None = None) -> Ran:
    """Run the command line until it ends."""
    chosen = {**os.environ, "COLUMNS": "160", **(environment or {})}
    finished = subprocess.run(
        [*COMMAND, *arguments], input=stdin, capture_output=True, text=True, env=chosen, check=False
    )
    assert "Traceback" not in finished.stderr, finished.stderr
    return Ran(finished.returncode, finished.stdout, finished.stderr)

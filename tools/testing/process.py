"""Run a program for the length of a block, or a script with Python packages that this project does not have."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def running(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program during a ``with`` block, and kill it at the end.

    Args:
        command: The program and its arguments.
        log: Receives its output.
        environment: Variables in addition to our own.
    """
    with log.open("w") as file:
        process = subprocess.Popen(command, env={**os.environ, **(environment or {})}, stdout=file, stderr=file)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def run_script(code: str, packages: Sequence[str], *arguments: str, stdin: str | None = None) -> str:
    """Run Python code with some packages, which uv fetches; return its output."""
    uv = shutil.which("uv")
    assert uv is not None, "the test fetches Python packages with uv: run it by `make test`"
    options = [option for package in packages for option in ("--with", package)]
    command = [uv, "run", "--quiet", "--no-project", *options, "python", "-c", code, *arguments]
    ran = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout

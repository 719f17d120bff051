"""Run the command line as a user does: as a process, with its output in pipes."""

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

COMMAND = [sys.executable, "-m", "finetune_cli.main"]
FORKED = ("render", "validate", "estimate", "agent")
"""Commands that start no process: theirs are forked from a server that has imported what they import."""


@dataclass(frozen=True)
class CommandResult:
    """Exit status and output of the command line."""

    code: int
    out: str
    err: str


def finetune(*arguments: str, stdin: str | None = None, environment: Mapping[str, str] | None = None) -> CommandResult:
    """Run the command line until it ends."""
    chosen = {**os.environ, "COLUMNS": "160", **(environment or {})}
    ran = _fork(arguments, stdin, chosen) if arguments[0] in FORKED else _spawn(arguments, stdin, chosen)
    assert "Traceback" not in ran.err, ran.err
    return ran


def _spawn(arguments: tuple[str, ...], stdin: str | None, environment: Mapping[str, str]) -> CommandResult:
    completed = subprocess.run(
        [*COMMAND, *arguments], input=stdin, capture_output=True, text=True, env=environment, check=False
    )
    return CommandResult(completed.returncode, completed.stdout, completed.stderr)


def _fork(arguments: tuple[str, ...], stdin: str | None, environment: Mapping[str, str]) -> CommandResult:
    with tempfile.TemporaryDirectory() as name:
        streams = [Path(name, stream) for stream in ("in", "out", "err")]
        streams[0].write_text(stdin or "")
        request = {"arguments": arguments, "streams": list(map(str, streams)), "environment": dict(environment)}
        server = _fork_server()
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        return CommandResult(int(server.stdout.readline()), streams[1].read_text(), streams[2].read_text())


@functools.cache
def _fork_server() -> "subprocess.Popen[str]":
    """Return the server that this session has started; it ends with this process, which closes its standard input."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.cli.fork_server"],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

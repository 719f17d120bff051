"""A process that has imported the command line, and forks for each request: a line of JSON in, an exit status out."""

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import finetune_cli.estimate
import finetune_cli.validate  # noqa: F401 -- what takes long to import


def serve() -> None:
    """Answer requests until standard input ends."""
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            run(json.loads(line))
        _, status = os.waitpid(process, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def run(request: dict[str, Any]) -> None:
    """Run the command with files as its standard streams, and end this process."""
    for descriptor, (path, mode) in enumerate(zip(request["streams"], "rww", strict=True)):
        with Path(path).open(mode) as file:
            os.dup2(file.fileno(), descriptor)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["finetune", *request["arguments"]]
    runpy.run_module("finetune_cli.main", run_name="__main__")


if __name__ == "__main__":
    serve()

"""Run an agent for each pod: ``python -m bench.rollout.agents``, with the settings of all agents on standard input.

Each agent is a process of its own, forked from this one once the agent is imported: fifty starts of Python would keep
two cores busy for minutes.
"""

import asyncio
import contextlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from finetune_agent.__main__ import serve
from finetune_agent.settings import Settings


def main() -> None:
    """Start all agents, and wait until they end."""
    for values in json.load(sys.stdin):
        if os.fork() == 0:
            run(values)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


def run(values: dict[str, Any]) -> None:
    """Run one agent until it is killed. Each line of its log begins with the time, in seconds of the epoch."""
    Path(values.pop("pid_file")).write_text(str(os.getpid()))
    logging.basicConfig(filename=values.pop("log"), level=logging.INFO, format="%(created).6f %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    paths = {name: Path(value) for name, value in values.items() if name.endswith(("_file", "_directory"))}
    asyncio.run(serve(Settings(**{**values, **paths})))


if __name__ == "__main__":
    main()

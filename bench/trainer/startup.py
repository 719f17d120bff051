"""Time the phases from the start of the process to the first step, from the trainer's log."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.trainer.data import BenchData
from finetune_api.finetunejob import Usage
from finetune_api.messages import TrainerResult
from tools.testing.s3_server import S3Server
from tools.testing.trainer_jobs import Workbench

DONE = re.compile(r"s  (.+): done in ([0-9.]+) s$")
FIRST_STEP = "step 1 of "


@dataclass(frozen=True)
class Start:
    """The seconds of each phase, in their order, and the seconds until the first step was done."""

    phases: dict[str, float]
    first_step: float


class Starts:
    """Runs a job on a disk that is kept, so that a second attempt finds the files of the first one."""

    def __init__(self, data: BenchData, server: S3Server, directory: Path, name: str, steps: int = 2) -> None:
        """Write the dataset, and name the job."""
        self._bench = Workbench(server, server.create_bucket(f"bench-{name}"), data.model, directory / name)
        self._bench.dataset(BenchData.jsonl(data.texts))
        self._scratch = directory / name / "scratch"
        self._termination_log = self._bench.directory / "termination-log"
        self._job = self._bench.job(
            dataset={"uri": "configmap://data/train.jsonl", "format": "text"},
            training={"maxSteps": steps, "maxLength": data.size.max_length, "packing": True},
        )

    def attempt(self) -> Start:
        """Run until the first step is done. Raises RuntimeError if the trainer ends earlier."""
        phases: dict[str, float] = {}
        began = time.monotonic()
        with self._process(self._job) as process:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line)
                if match := DONE.search(line):
                    phases[match[1]] = float(match[2])
                if FIRST_STEP in line:
                    seconds = time.monotonic() - began
                    process.kill()
                    return Start(phases, seconds)
        raise RuntimeError("".join(lines))

    def run_to_end(self) -> Usage:
        """Run to the end, and return the trainer's usage. Raises RuntimeError if it does not succeed."""
        with self._process(self._job) as process:
            output, _ = process.communicate()
        result = TrainerResult.model_validate_json(self._termination_log.read_bytes())
        if result.reason != "Succeeded" or result.usage is None:
            raise RuntimeError(output)
        return result.usage

    def refusal(self) -> float:
        """Return the seconds until a job with an invalid field is refused."""
        spec = self._job["spec"]
        invalid_job = self._job | {"spec": spec | {"training": spec["training"] | {"maxLength": 1}}}
        began = time.monotonic()
        with self._process(invalid_job) as process:
            output, _ = process.communicate()
        if process.returncode != 10:
            raise RuntimeError(f"an invalid job ended with exit code {process.returncode}: {output}")
        return time.monotonic() - began

    def _process(self, job: dict[str, Any]) -> "subprocess.Popen[str]":
        environment = os.environ | {
            "FINETUNE_JOB": json.dumps(job),
            "FINETUNE_MOUNTS": str(self._bench.mounts),
            "FINETUNE_SCRATCH": str(self._scratch),
            "FINETUNE_TERMINATION_LOG": str(self._termination_log),
            "PYTHONUNBUFFERED": "1",
        }
        return subprocess.Popen(
            [sys.executable, "-m", "finetune_trainer", "train"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

"""Run attempts in this process, with the same mounts as in a pod."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_api.finetunejob import FineTuneJob
from finetune_api.manifest import AdapterManifest
from finetune_api.messages import ProgressReport, TrainerResult
from finetune_api.uris import S3Uri
from finetune_artifacts.objects import read_object
from finetune_trainer.attempt import run_attempt
from finetune_trainer.runtime.interruption import Interruption
from finetune_trainer.runtime.phase_clock import CLOCK
from finetune_trainer.runtime.settings import Settings
from finetune_trainer.session.progress import Reporter
from finetune_trainer.session.run import Run
from tools.testing.s3_server import S3Server, write_secret

ROWS = [
    {
        "prompt": f"Question {number}: what follows {number}?\n",
        "completion": f"After {number} comes {number + 1}, and then {number + 2}.",
    }
    for number in range(40)
]
CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"What follows {number}?"},
            {"role": "assistant", "content": f"{number + 1}."},
            {"role": "user", "content": "And then?"},
            {"role": "assistant", "content": f"{number + 2}, of course."},
        ]
    }
    for number in range(24)
]


def jsonl(rows: list[dict[str, Any]]) -> str:
    """Return the text of a jsonl file with these rows."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def diverging_sections(bench: "Workbench") -> dict[str, Any]:
    """Return sections of a spec with which numbers overflow on every processor, but not in the first step."""
    training = bench.job()["spec"]["training"] | {"learningRate": 1e9, "warmupRatio": 0.5, "maxGradNorm": 1e9}
    # A norm after the attention would turn a number whose square overflows into zero.
    lora = {"rank": 4, "alpha": 100_000_000, "targetModules": ["gate_proj", "up_proj", "down_proj"]}
    return {"training": training, "method": {"lora": lora}}


class AtStep(Reporter):
    """A reporter that calls a function once the training has reached a step."""

    def __init__(self, step: int, action: Callable[[], None]) -> None:
        """Store the step and the function."""
        super().__init__(None, Path())
        self._step, self._action, self._done = step, action, False

    def submit(self, report: ProgressReport) -> None:
        """Call the function if the step is reached for the first time."""
        if report.progress.step >= self._step and not self._done:
            self._done = True
            self._action()


class AtCheckpoint(Reporter):
    """A reporter that calls a function once the first checkpoint is in S3."""

    def __init__(self, action: Callable[[], None]) -> None:
        """Store the function."""
        super().__init__(None, Path())
        self._action: Callable[[], None] | None = action

    def submit(self, report: ProgressReport) -> None:
        """Call the function if this is the first report with a checkpoint."""
        if report.checkpoint and self._action:
            action, self._action = self._action, None
            action()


class Workbench:
    """A bucket, and the mounts of a pod that has its credentials."""

    def __init__(self, server: S3Server, bucket: str, model: Path, directory: Path) -> None:
        """Create the mounts: the credentials, and the model on a claim."""
        self.server, self.bucket, self.directory = server, bucket, directory
        self.mounts = directory / "mounts"
        write_secret(
            self.mounts / "secrets" / "s3-credentials", *(key.read_text() for key in sorted(server.secret.iterdir()))
        )
        (self.mounts / "claims").mkdir()
        (self.mounts / "claims" / "models").symlink_to(model.parent)
        self.model_uri = f"pvc://models/{model.name}"
        self.dataset(jsonl(ROWS))
        self.scratches = 0

    def dataset(self, text: str | bytes, key: str = "train.jsonl") -> str:
        """Put a dataset into the job's ConfigMap, and return its address."""
        path = self.mounts / "configmaps" / "data" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return f"configmap://data/{key}"

    def job(self, **spec: Any) -> dict[str, Any]:
        """Return a FineTuneJob with few and small steps; each section in ``spec`` replaces the default one."""
        defaults: dict[str, Any] = {
            "model": {"uri": self.model_uri},
            "dataset": {"uri": "configmap://data/train.jsonl"},
            "method": {"lora": {"rank": 4, "alpha": 8, "dropout": 0.1}},
            "training": {
                "maxSteps": 6,
                "perDeviceBatchSize": 2,
                "gradientAccumulationSteps": 2,
                "maxLength": 48,
                "learningRate": 2e-3,
            },
            "output": {
                "s3": {"bucket": self.bucket, "endpoint": self.server.endpoint, "prefix": "team/job"},
                "secretRef": {"name": "s3-credentials"},
            },
            "checkpoint": {"everySteps": 2},
            "evaluation": {"samples": 1},
            "resources": {"gpusPerNode": 0},
        }
        meta = {"namespace": "team", "name": "job", "uid": "0a1b2c3d-0000-4000-8000-000000000000"}
        return {"metadata": meta, "spec": defaults | spec}

    def settings(self, **spec: Any) -> Settings:
        """Return the settings of an attempt at a job with these sections, with new scratch space."""
        return self.settings_of(self.job(**spec))

    def settings_of(self, job: dict[str, Any]) -> Settings:
        """Return the settings of an attempt at a job, with new scratch space, as each pod has."""
        self.scratches += 1
        return Settings(
            job=FineTuneJob.of(job),
            mounts=self.mounts,
            scratch=self.directory / f"scratch-{self.scratches}",
            termination_log=self.directory / "termination-log",
            simulated_gpus=True,
        )

    def read(self, key: str) -> bytes:
        """Return the content of an object in the bucket."""
        return read_object(self.server.store(), S3Uri(self.bucket, key))

    def objects(self) -> list[str]:
        """Return all keys of the bucket, read from the server's directory."""
        root = self.server.buckets / self.bucket
        return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())

    def manifest(self) -> AdapterManifest:
        """Return the finished adapter's manifest."""
        return AdapterManifest.model_validate_json(self.read("team/job/adapter/manifest.json"))

    def weights(self) -> bytes:
        """Return the finished adapter's weights."""
        return self.read("team/job/adapter/adapter_model.safetensors")


def never() -> None:
    """Fail the test: an interruption must not end the process outside the training loop."""
    raise AssertionError("asked to stop outside the training loop")


def alone(result: TrainerResult) -> None:
    """Fail the test: an attempt of one process must not wait for another one."""
    raise AssertionError(result.message)


def train(settings: Settings, reporter: Callable[[Interruption], Reporter] | None = None) -> tuple[TrainerResult, Run]:
    """Run one attempt in this process."""
    run, interruption = Run(), Interruption(60, never)
    CLOCK.restart()
    attempt_reporter = reporter(interruption) if reporter else Reporter(None, Path())
    return run_attempt(settings, run, interruption, attempt_reporter, alone), run


def train_until(settings: Settings, step: int) -> TrainerResult:
    """Run one attempt that is asked to stop after ``step`` steps."""
    result, _ = train(settings, lambda interruption: AtStep(step, interruption.request))
    return result

"""What tells one run from another: all that decides its next step. It lies beside each checkpoint, so that an attempt can say why it begins anew."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from finetune_api.manifest import CheckpointManifest, Origin
from finetune_api.uris import S3Uri
from finetune_artifacts.checkpoints import list_checkpoints, list_runs, read_manifest, run_uri
from finetune_artifacts.errors import ArtifactError, Fault
from finetune_artifacts.objects import read_object
from finetune_artifacts.store import Place
from finetune_trainer.runtime.logs import log

COMPONENTS_FILE = "decisive.json"
"""Beside a checkpoint: the parts of its run's mark."""
SHORT = 40
"""A value of more characters is not shown."""


@dataclass(frozen=True)
class RunFingerprint:
    """All that decides the next step, by what it is called."""

    decisive: dict[str, Any]

    @property
    def digest(self) -> str:
        """The run's fingerprint. A checkpoint with another one belongs to another run."""
        return f"sha256:{hashlib.sha256(self.to_bytes()).hexdigest()}"

    def to_bytes(self) -> bytes:
        """What is kept beside a checkpoint."""
        return json.dumps(self.decisive, sort_keys=True).encode()

    def place(self, checkpoints: S3Uri) -> S3Uri:
        """Where the run's checkpoints lie."""
        return run_uri(checkpoints, self.digest)


@dataclass(frozen=True)
class PreviousRun:
    """A run at the same place: the manifest of its newest complete checkpoint, and what decided its steps."""

    uri: S3Uri
    manifest: CheckpointManifest
    decisive: dict[str, Any]


def list_previous_runs(output: Place, checkpoints: S3Uri) -> Iterator[PreviousRun]:
    """All runs that have a complete checkpoint below ``checkpoints``. Raises ArtifactError if S3 cannot be reached or refuses."""
    for run in list_runs(output, checkpoints):
        for stored in list_checkpoints(output, run):
            try:
                manifest = read_manifest(output, stored)
                decisive = json.loads(read_object(output, stored.uri.child(COMPONENTS_FILE)))
            except (ArtifactError, ValueError) as error:
                if isinstance(error, ArtifactError) and error.fault in (Fault.UNREACHABLE, Fault.DENIED):
                    raise
                continue
            yield PreviousRun(run, manifest, decisive if isinstance(decisive, dict) else {})
            break


def list_other_jobs(output: Place, checkpoints: S3Uri, origin: Origin) -> list[str]:
    """Jobs of other names that have checkpoints here."""
    jobs = (run.manifest.job for run in list_previous_runs(output, checkpoints))
    return sorted({f"{job.namespace}/{job.name}" for job in jobs} - {f"{origin.namespace}/{origin.name}"})


def list_skipped_runs(output: Place, checkpoints: S3Uri, origin: Origin, mark: RunFingerprint) -> list[str]:
    """Warnings of earlier runs of this very job from which this attempt does not go on, with what differs. Other jobs' are only logged: they are theirs."""
    warnings = []
    for other in list_previous_runs(output, checkpoints):
        if other.uri == mark.place(checkpoints):
            continue
        if other.manifest.job != origin:
            job = other.manifest.job
            log.warning("%s has checkpoints of FineTuneJob %s/%s: left alone", other.uri, job.namespace, job.name)
            continue
        different = ", ".join(describe_differences(other.decisive, json.loads(mark.to_bytes())))
        warnings.append(
            f"the training begins at step 0: the checkpoint of step {other.manifest.step} in {other.uri}, which stays there, was made with another {different}"
        )
    return warnings


def describe_differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What differs, by name, with both values where they are short: ``precision (fp32, now bf16)``."""
    old, new = _flat(before), _flat(after)
    found = []
    for name in sorted(old.keys() | new.keys()):
        values = [json.dumps(side.get(name)).strip('"') for side in (old, new)]
        if values[0] != values[1]:
            shown = max(map(len, values)) <= SHORT
            found.append(f"{name} ({values[0]}, now {values[1]})" if shown else name)
    return found


def _flat(parts: dict[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in parts.items():
        inner = _flat(value, f"{path}{name}.") if isinstance(value, dict) and value else {f"{path}{name}": value}
        flat |= inner
    return flat

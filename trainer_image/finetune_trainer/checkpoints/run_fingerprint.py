"""Compute the fingerprint of a run: everything that decides its next step. It is stored beside each checkpoint.

Two runs with one fingerprint end with the same weights, so that either may continue the other's checkpoints.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from finetune_api.manifest import CheckpointManifest, Origin
from finetune_api.uris import StorageUri
from finetune_artifacts.checkpoints import list_checkpoints, list_runs, read_checkpoint_manifest, run_uri
from finetune_artifacts.errors import ArtifactError, Fault
from finetune_artifacts.objects import read_object
from finetune_artifacts.storage import Storage
from finetune_trainer.runtime.logs import log

COMPONENTS_FILE = "decisive.json"
"""The file beside a checkpoint that holds the components of its run's fingerprint."""
MAX_SHOWN_VALUE = 40
"""Characters of the longest value that a warning shows."""


@dataclass(frozen=True)
class RunFingerprint:
    """Everything that decides the next step, by the name that warnings give it."""

    components: dict[str, Any]

    @property
    def digest(self) -> str:
        """Return the digest; a checkpoint with another one belongs to another run."""
        return f"sha256:{hashlib.sha256(self.to_bytes()).hexdigest()}"

    def to_bytes(self) -> bytes:
        """Encode the components as the JSON that lies beside a checkpoint."""
        return json.dumps(self.components, sort_keys=True).encode()

    def run_uri(self, checkpoints: StorageUri) -> StorageUri:
        """Return the URI of the run's checkpoints below those of the job."""
        return run_uri(checkpoints, self.digest)


@dataclass(frozen=True)
class PreviousRun:
    """A run with checkpoints at the same prefix: its newest complete manifest and its fingerprint's components."""

    uri: StorageUri
    manifest: CheckpointManifest
    components: dict[str, Any]


def list_previous_runs(output: Storage, checkpoints: StorageUri) -> Iterator[PreviousRun]:
    """List the runs that have a complete checkpoint below ``checkpoints``.

    Raises:
        ArtifactError: The storage cannot be reached, or refuses. A damaged checkpoint is only left out.
    """
    for uri in list_runs(output, checkpoints):
        for checkpoint in list_checkpoints(output, uri):
            try:
                manifest = read_checkpoint_manifest(output, checkpoint)
                components = json.loads(read_object(output, checkpoint.uri.child(COMPONENTS_FILE)))
            except (ArtifactError, ValueError) as error:
                if isinstance(error, ArtifactError) and error.fault in (Fault.UNREACHABLE, Fault.DENIED):
                    raise
                continue
            yield PreviousRun(uri, manifest, components if isinstance(components, dict) else {})
            break


def list_other_jobs(output: Storage, checkpoints: StorageUri, origin: Origin) -> list[str]:
    """List the jobs of other names, as ``namespace/name``, that have checkpoints at this prefix."""
    jobs = (run.manifest.job for run in list_previous_runs(output, checkpoints))
    return sorted({f"{job.namespace}/{job.name}" for job in jobs} - {f"{origin.namespace}/{origin.name}"})


def warn_of_unused_runs(
    output: Storage, checkpoints: StorageUri, origin: Origin, fingerprint: RunFingerprint
) -> list[str]:
    """Return a warning for each earlier run of this job that is not continued, with what differs.

    Runs of other jobs are only logged.
    """
    warnings = []
    for run in list_previous_runs(output, checkpoints):
        if run.uri == fingerprint.run_uri(checkpoints):
            continue
        if run.manifest.job != origin:
            job = run.manifest.job
            log.warning("%s has checkpoints of FineTuneJob %s/%s: left alone", run.uri, job.namespace, job.name)
            continue
        differences = ", ".join(describe_differences(run.components, json.loads(fingerprint.to_bytes())))
        warnings.append(
            f"the training begins at step 0: the checkpoint of step {run.manifest.step} in {run.uri} was made with "
            f"another {differences}. It is deleted when this training has come as far"
        )
    return warnings


def describe_differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Name the components that differ, with both values where they are short: ``precision (fp32, now bf16)``."""
    old, new = _flatten(before), _flatten(after)
    differences = []
    for name in sorted(old.keys() | new.keys()):
        old_text, new_text = (json.dumps(components.get(name)).strip('"') for components in (old, new))
        if old_text != new_text:
            is_short = max(len(old_text), len(new_text)) <= MAX_SHOWN_VALUE
            differences.append(f"{name} ({old_text}, now {new_text})" if is_short else name)
    return differences


def _flatten(components: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries to one with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in components.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat

"""Which checkpoint, if any, this attempt goes on from, and what tells two runs apart."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from finetune_api.finetunejob import CheckpointStatus, FineTuneJobSpec
from finetune_api.manifest import CheckpointManifest
from finetune_api.uris import S3Uri
from finetune_artifacts.checkpoints import checkpoint_uri, delete_checkpoint, list_checkpoints, newest_checkpoint
from finetune_trainer.checkpoints import attempt_history, best_weights, template_date
from finetune_trainer.checkpoints.run_fingerprint import RunFingerprint, list_skipped_runs
from finetune_trainer.data import dataset
from finetune_trainer.distributed import process_group
from finetune_trainer.models import device
from finetune_trainer.models.base_files import canonical_name
from finetune_trainer.runtime import libraries
from finetune_trainer.runtime.logs import log
from finetune_trainer.runtime.process import Process
from finetune_trainer.runtime.settings import now
from finetune_trainer.session.plan import Plan, learning_rate
from finetune_trainer.session.session import Session

ENVIRONMENT_FILE = "surroundings.json"
"""Beside a checkpoint: what can change the last bits of a resumed run without being a setting of the job."""


@dataclass(frozen=True)
class Resume:
    """A checkpoint on the local disk to go on from."""

    step: int
    directory: Path
    stopped: bool = False
    """After it the training was stopped early: there is nothing left to do."""


def fingerprint_run(session: Session, plan: Plan, examples: dataset.Examples, base: str) -> RunFingerprint:
    """All that decides the next step. ``base`` is the digest of the base's weights as they lie in memory: what is trained on is not what its files say alone,
    for another precision or quantisation is another base. A resumed run must end with the weights of one that was not interrupted.
    """
    spec = session.settings.job.spec
    decisive: dict[str, Any] = {
        "base model": {
            "name": canonical_name(session.settings),
            "commit": session.inputs.model_commit,
            "weights in memory": base,
        },
        "precision": plan.precision,
        "adapter": session.inputs.adapter.digest if session.inputs.adapter else None,
        "dataset": spec.dataset.model_dump(
            mode="json", include={"format", "columns", "template", "validation", "max_samples"}
        ),
        "dataset's files": [digest for _, digest in examples.digests],
        "tokens": examples.tokens,
        "objective": [spec.objective, spec.preference.to_json() if spec.preference else None],
        "method": spec.method.to_json(),
        "training": fingerprint_training(spec),
    }
    if best_weights.chooses_best_weights(spec):
        decisive["evaluation"] = spec.evaluation.to_json()["everySteps"], spec.evaluation.max_rows
    if session.run.day:
        decisive[template_date.DATE_COMPONENT] = session.run.day
    return RunFingerprint(decisive)


def fingerprint_training(spec: FineTuneJobSpec) -> dict[str, Any]:
    """What decides a step: all of spec.training but how its sequences are spread over processes and micro-steps, what is recomputed in each
    (finetune_api.ladder), and where the base lies."""
    training = spec.training.to_json() | {"learningRate": learning_rate(spec)}
    del training["gradientCheckpointing"], training["sharding"]
    sequences = training.pop("perDeviceBatchSize") * training.pop("gradientAccumulationSteps")
    return training | {"sequences": sequences * spec.resources.processes}


def describe_environment(process: Process) -> dict[str, str]:
    """What else the last bits of a result hang on; with dropout more than those hang on the number of processes, each of which draws its own."""
    return {
        "device": device.device_name(),
        "threads": str(torch.get_num_threads()),
        "processes": str(process.world_size),
        **libraries.library_versions(),
    }


def find_checkpoint(session: Session, mark: RunFingerprint) -> Resume | None:
    """The newest whole checkpoint of this very run, fetched, the same for all processes. Those of the run that are newer are torn or damaged, and removed;
    other runs' are left alone.
    """
    found = choose_checkpoint(session, mark) if session.process.is_main_process else None
    step = process_group.broadcast(found.step if found else None)
    if step is None or session.process.is_main_process:
        return found
    return Resume(step, session.scratch / "resume")


def choose_checkpoint(session: Session, mark: RunFingerprint) -> Resume | None:
    """As the process that speaks for the run chooses it."""
    settings, output, run = session.settings, session.output, session.run
    directory = session.scratch / "resume"
    place = mark.place(settings.checkpoints)
    manifest = newest_checkpoint(output, place, mark.digest, directory)
    before = attempt_history.read_history(directory) if manifest else []
    resumed_from = manifest.step if manifest else None
    changes = [str(change) for change in settings.adjustments]
    run.attempts = attempt_history.append_attempt(
        before, settings.attempt, now(), resumed_from, device.device_name(), changes
    )
    step = manifest.step if manifest else -1
    for stored in list_checkpoints(output, place):
        if stored.step > step:
            log.warning("removing %s, which cannot be continued from", stored.uri)
            delete_checkpoint(output, stored)
    if manifest is None:
        run.warnings += list_skipped_runs(output, settings.checkpoints, settings.origin, mark)
        run.resumed_from_step = run.checkpoint = None  # of an attempt with other settings, in the same process
        log.info("no checkpoint to continue from: starting at step 0")
        return None
    log.info("continuing from step %d of %d", manifest.step, manifest.total_steps)
    run.resumed_from_step = manifest.step
    run.checkpoint = checkpoint_status(place, manifest)
    warn_of_changed_environment(directory, session)
    return Resume(manifest.step, directory)


def checkpoint_status(run: S3Uri, manifest: CheckpointManifest) -> CheckpointStatus:
    """``FineTuneJob.status.checkpoint`` for a checkpoint that was found."""
    return CheckpointStatus(
        uri=str(checkpoint_uri(run, manifest.step)), step=manifest.step, saved_at=manifest.created_at
    )


def warn_of_changed_environment(directory: Path, session: Session) -> None:
    """Warn where this attempt runs on something else than the last one: the result then differs in its last bits."""
    path = directory / ENVIRONMENT_FILE
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    changed = [
        f"{name} {before[name]} → {value}"
        for name, value in describe_environment(session.process).items()
        if before.get(name, value) != value
    ]
    if changed:
        session.run.warnings.append(f"resumed on other surroundings, so the last bits may differ: {', '.join(changed)}")

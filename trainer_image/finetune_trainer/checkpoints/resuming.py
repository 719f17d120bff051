"""Decide which checkpoint, if any, this attempt resumes from, and compute the fingerprint of its run."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from finetune_api.finetunejob import CheckpointStatus, FineTuneJobSpec
from finetune_api.manifest import CheckpointManifest
from finetune_api.timestamps import current_timestamp
from finetune_api.uris import StorageUri
from finetune_artifacts.checkpoints import (
    checkpoint_uri,
    delete_checkpoint,
    download_newest_checkpoint,
    list_checkpoints,
)
from finetune_trainer.checkpoints import attempt_history, best_weights, template_date
from finetune_trainer.checkpoints.run_fingerprint import RunFingerprint, warn_of_unused_runs
from finetune_trainer.data import dataset
from finetune_trainer.distributed import process_group
from finetune_trainer.models import device
from finetune_trainer.models.base_files import canonical_name
from finetune_trainer.runtime import libraries
from finetune_trainer.runtime.logs import log
from finetune_trainer.runtime.process import Process
from finetune_trainer.session.plan import Plan, choose_learning_rate
from finetune_trainer.session.session import Session

ENVIRONMENT_FILE = "surroundings.json"
"""The file beside a checkpoint with properties of the machine that can change a resumed run's last bits."""


@dataclass(frozen=True)
class Resume:
    """A checkpoint on the local disk to resume from. ``stopped``: the early stop had ended the training there."""

    step: int
    directory: Path
    stopped: bool = False


def fingerprint_run(session: Session, plan: Plan, examples: dataset.Examples, base_digest: str) -> RunFingerprint:
    """Compute the fingerprint of the run that this attempt belongs to.

    Args:
        session: The attempt.
        plan: Its plan.
        examples: The prepared dataset.
        base_digest: The digest of the base's weights in memory. The files alone do not decide it, since another
            precision or quantisation is another base. If an initialisation took a part out of the base, the digest of
            the base before and of that part.
    """
    spec = session.settings.job.spec
    components: dict[str, Any] = {
        "base model": {
            "name": canonical_name(session.settings),
            "commit": session.inputs.model_commit,
            "weights in memory": base_digest,
        },
        "precision": plan.precision,
        "adapter": session.inputs.adapter.digest if session.inputs.adapter else None,
        "dataset": spec.dataset.model_dump(
            mode="json", include={"format", "columns", "template", "validation", "max_samples"}
        ),
        "dataset's files": [digest for _, digest in examples.digests],
        "tokens": examples.cache_key,
        "objective": [spec.objective, spec.preference.to_json() if spec.preference else None],
        "method": spec.method.to_json(),
        "training": fingerprint_training(spec),
    }
    if best_weights.chooses_best_weights(spec):
        components["evaluation"] = spec.evaluation.to_json()["everySteps"], spec.evaluation.max_rows
    if session.run.template_date:
        components[template_date.DATE_COMPONENT] = session.run.template_date
    return RunFingerprint(components)


def fingerprint_training(spec: FineTuneJobSpec) -> dict[str, Any]:
    """Return the settings of ``spec.training`` that decide a step.

    The split of a step's sequences into processes and micro-batches, gradient checkpointing and sharding do not:
    the out-of-memory ladder changes them between attempts.
    """
    training = spec.training.to_json() | {"learningRate": choose_learning_rate(spec)}
    del training["gradientCheckpointing"], training["sharding"]
    for name in ("perDeviceBatchSize", "gradientAccumulationSteps"):
        training.pop(name, None)
    training |= {"order": "longest rows first"} if has_longest_first(spec) else {}
    training |= {"pairs": "within a step"} if spec.objective == "kto" else {}
    sequences = spec.training.sequences_per_step(spec.resources.processes)
    return training | {"packing": spec.training.packs, "sequences": sequences}


def has_longest_first(spec: FineTuneJobSpec) -> bool:
    """Return whether the first step takes the longest rows.

    Packed rows are equally long. The rows of kto keep their order, because TRL pairs each with the answer of another.
    """
    return not spec.training.packs and spec.objective != "kto"


def describe_environment(process: Process) -> dict[str, str]:
    """Return the properties of the machine on which the last bits of a result depend.

    With dropout, more than the last bits depend on the number of processes, because each draws its own numbers.
    """
    return {
        "device": device.device_name(),
        "threads": str(torch.get_num_threads()),
        "processes": str(process.world_size),
        **libraries.library_versions(),
    }


def find_checkpoint(session: Session, fingerprint: RunFingerprint) -> Resume | None:
    """Fetch the newest complete checkpoint of this run, the same for all processes; None if there is none."""
    resume = choose_checkpoint(session, fingerprint) if session.process.is_main_process else None
    step = process_group.broadcast(resume.step if resume else None)
    if step is None or session.process.is_main_process:
        return resume
    return Resume(step, session.scratch / "resume")


def choose_checkpoint(session: Session, fingerprint: RunFingerprint) -> Resume | None:
    """Fetch the newest complete checkpoint of this run, and delete its newer ones, which are damaged.

    Only the main process calls it. Checkpoints of other runs are left alone.
    """
    settings, output, run = session.settings, session.output, session.run
    directory = session.scratch / "resume"
    run_uri = fingerprint.run_uri(settings.checkpoints)
    manifest = download_newest_checkpoint(output, run_uri, fingerprint.digest, directory)
    history = attempt_history.read_history(directory) if manifest else []
    resumed_from = manifest.step if manifest else None
    run.attempts = attempt_history.append_attempt(
        history,
        number=settings.attempt,
        started_at=current_timestamp(),
        resumed_from=resumed_from,
        device=device.device_name(),
        adjustments=[str(adjustment) for adjustment in settings.adjustments],
    )
    step = manifest.step if manifest else -1
    for stored in list_checkpoints(output, run_uri):
        if stored.step > step:
            log.warning("deleting %s: the training cannot continue from it", stored.uri)
            delete_checkpoint(output, stored)
    if manifest is None:
        run.warnings += warn_of_unused_runs(output, settings.checkpoints, settings.origin, fingerprint)
        run.resumed_from_step = run.checkpoint = (
            None  # an attempt with other settings in this process may have set them
        )
        log.info("no checkpoint to continue from: starting at step 0")
        return None
    log.info("continuing from step %d of %d", manifest.step, manifest.total_steps)
    run.resumed_from_step = manifest.step
    run.checkpoint = checkpoint_status(run_uri, manifest)
    warn_of_changed_environment(directory, session)
    return Resume(manifest.step, directory)


def checkpoint_status(run: StorageUri, manifest: CheckpointManifest) -> CheckpointStatus:
    """Return ``status.checkpoint`` for a checkpoint."""
    return CheckpointStatus(
        uri=str(checkpoint_uri(run, manifest.step)), step=manifest.step, saved_at=manifest.created_at
    )


def warn_of_changed_environment(directory: Path, session: Session) -> None:
    """Warn if this attempt runs on another device or other versions than the last one: its last bits may differ."""
    path = directory / ENVIRONMENT_FILE
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    changed = [
        f"{name} {before[name]} → {value}"
        for name, value in describe_environment(session.process).items()
        if before.get(name, value) != value
    ]
    if changed:
        session.run.warnings.append(
            f"resumed in another environment, so the last bits may differ: {', '.join(changed)}"
        )

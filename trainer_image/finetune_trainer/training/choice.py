"""Choose packing, batch and accumulation at the start, where ``spec.training`` leaves them unset.

All processes get the same choice. What decides a step (packing, and the sequences of a step) is that of the job's
earlier checkpoints, if there are any, so that a resumed run takes the same steps.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
from trl.data_utils import pack_dataset

from finetune_api import combinations
from finetune_api.estimate.architecture import architecture_of
from finetune_api.estimate.defaults import choose_micro_step, choose_sequences, explain_micro_step, split_step
from finetune_api.estimate.modules import Architecture
from finetune_api.finetunejob import FineTuneJobSpec, Training, TrainingChoice
from finetune_api.reductions import smallest_batch
from finetune_trainer.checkpoints.resuming import fingerprint_training
from finetune_trainer.checkpoints.run_fingerprint import list_previous_runs
from finetune_trainer.data.dataset import Examples
from finetune_trainer.distributed import process_group
from finetune_trainer.models import device, packed_attention
from finetune_trainer.runtime.logs import log
from finetune_trainer.session.session import Session
from finetune_trainer.training import contamination
from finetune_trainer.training.model import is_sharded

WORTHWHILE_ROWS = 0.9
"""Packing is left off if it makes more than this share of the rows: there is nothing to gain."""
STEP_FIELDS = ("packing", "sequences", "order")
"""The settings in the fingerprint's component ``training`` that a choice decides."""


@dataclass(frozen=True)
class EarlierSteps:
    """The steps of the job's earlier attempts: whether rows are packed, and the sequences of a step."""

    packing: bool
    sequences: int


def has_open_fields(spec: FineTuneJobSpec) -> bool:
    """Return whether there is something to choose. A batch that the user sets is taken as it is, without packing."""
    return spec.training.leaves_batch_open and spec.resources.gpus_per_node > 0


def choose_training(session: Session, base: Any, examples: Examples) -> Session:
    """Choose what the job leaves unset, and return the session of a job that has it.

    Args:
        session: The attempt; its run notes the choice.
        base: The base model, without an adapter; prepared for packed examples if they are chosen.
        examples: The prepared dataset.
    """
    choice = process_group.broadcast(_choose(session, base, examples) if session.process.is_main_process else None)
    settings = session.settings.with_choice(choice) if choice is not None else session.settings
    if packed_attention.is_installed(base) and not settings.job.spec.training.packs:
        packed_attention.uninstall(base)
    if choice is None:
        return session
    for reason in choice.why:
        log.info("%s", reason)
    session.run.choice = choice
    return replace(session, settings=settings)


def _choose(session: Session, base: Any, examples: Examples) -> TrainingChoice | None:
    """Choose in the main process; None to leave the defaults, because the memory is not known."""
    spec, gpu_bytes = session.settings.job.spec, device.training_bytes()
    if gpu_bytes is None:
        return _choose_smallest(spec)
    try:
        return _choose_for_memory(session, base, examples, gpu_bytes)
    except ValueError as error:
        log.info("perDeviceBatchSize is %d: there is no estimate of the memory (%s)", smallest_batch(spec), error)
        return _choose_smallest(spec)


def _choose_smallest(spec: FineTuneJobSpec) -> TrainingChoice | None:
    """Choose the smallest batch that the objective allows; None if it is the default, 1."""
    batch = smallest_batch(spec)
    if batch == 1:
        return None
    why = [f"perDeviceBatchSize {batch}: objective {spec.objective} compares the rows of a batch"]
    return TrainingChoice(per_device_batch_size=batch, gradient_accumulation_steps=1, why=why)


def _choose_for_memory(session: Session, base: Any, examples: Examples, gpu_bytes: int) -> TrainingChoice:
    """Choose what fills a GPU of this memory. Raises ValueError where there is no estimate of the need."""
    spec = session.settings.job.spec
    architecture = _read_architecture(session.inputs.model)
    earlier = find_earlier_steps(session, examples)
    packing, packing_reason = choose_packing(session, base, examples.train, earlier)
    spec = TrainingChoice(packing=packing).complete(spec)
    per_gpu, step_reason = choose_step(spec, count_rows(examples.train, spec.training), earlier)
    micro_step = choose_micro_step(spec, architecture, gpu_bytes, per_gpu)
    batch, accumulation = micro_step.sequences, per_gpu // micro_step.sequences
    return TrainingChoice(
        packing=packing,
        per_device_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        why=[
            *([packing_reason] if packing_reason else []),
            f"perDeviceBatchSize {batch}: {explain_micro_step(spec, micro_step, gpu_bytes)}",
            f"gradientAccumulationSteps {accumulation}: {step_reason}",
        ],
    )


def choose_packing(
    session: Session, base: Any, rows: datasets.Dataset, earlier: EarlierSteps | None
) -> tuple[bool | None, str]:
    """Choose whether examples are packed.

    Returns:
        The choice, and why as a sentence; None and no reason if the job decides it itself, or cannot pack.
    """
    spec = session.settings.job.spec
    packed = TrainingChoice(packing=True).complete(spec)
    if spec.training.packing is not None or not combinations.allows(packed):
        return None, ""
    if earlier and not earlier.packing:
        return False, "packing is off, as in the checkpoints of this job"
    if is_sharded(session):
        return False, "packing is off: for a sharded base it is not proved before the training"
    if len(rows) < 2:
        return False, "packing is off: there is one example"
    if earlier is None and count_rows(rows, packed.training) > WORTHWHILE_ROWS * len(rows):
        return False, "packing is off: the examples are about as long as maxLength already"
    if problem := contamination.prepare_packing(base, rows):
        return False, f"packing is off: {problem}"
    return True, "packing is on: the model is proved to keep packed examples apart"


def count_rows(rows: datasets.Dataset, training: Training) -> int:
    """Count the training rows, packed ones where they are packed."""
    return len(pack_dataset(rows, training.max_length, "bfd") if training.packs else rows)


def choose_step(spec: FineTuneJobSpec, rows: int, earlier: EarlierSteps | None) -> tuple[int, str]:
    """Choose the sequences that each GPU has in a step; return them, and why, as a sentence."""
    processes = spec.resources.processes
    if earlier and earlier.packing == spec.training.packs and not earlier.sequences % processes:
        per_gpu = earlier.sequences // processes
        if per_gpu >= smallest_batch(spec):
            return per_gpu, f"a step has {earlier.sequences} sequences, as in the checkpoints of this job"
    sequences = choose_sequences(spec, rows)
    kind = "packed rows" if spec.training.packs else "sequences"
    return sequences // processes, f"a step has {sequences} {kind} of {rows}"


def find_earlier_steps(session: Session, examples: Examples) -> EarlierSteps | None:
    """Find the steps of the newest checkpoint of this job that was made with the same settings and data."""
    settings = session.settings
    expected = _without_steps(json.loads(json.dumps(fingerprint_training(settings.job.spec))))
    runs = [
        run
        for run in list_previous_runs(session.output, settings.checkpoints)
        if run.manifest.job == settings.origin
        and run.components.get("tokens") == examples.cache_key
        and _without_steps(run.components.get("training", {})) == expected
    ]
    if not runs:
        return None
    training = max(runs, key=lambda run: run.manifest.created_at).components["training"]
    return EarlierSteps(bool(training["packing"]), int(training["sequences"]))


def _read_architecture(model: Path) -> Architecture:
    return architecture_of(json.loads((model / "config.json").read_text(encoding="utf-8")))


def _without_steps(training: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in training.items() if name not in STEP_FIELDS}


def split_for_memory(spec: FineTuneJobSpec, model: Path) -> FineTuneJobSpec:
    """Return the spec with its steps split anew to fit the GPU's memory.

    Without a GPU, or an estimate of the memory, it is returned unchanged.
    """
    gpu_bytes, per_gpu = device.training_bytes(), spec.training.sequences_per_step(1)
    if gpu_bytes is None:
        return spec
    try:
        micro_step = choose_micro_step(spec, _read_architecture(model), gpu_bytes, per_gpu)
    except ValueError:
        return spec
    return spec.model_copy(update={"training": split_step(spec.training, micro_step.sequences, per_gpu)})

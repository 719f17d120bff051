"""Evaluate the saved adapter on a fresh base, and let the workers of the training help.

All processes score held-out rows and general text together. Everything else is done by the main process, which goes on
alone if it loses a worker.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from finetune_api.reasons import Reason
from finetune_trainer.data.dataset import Examples
from finetune_trainer.distributed import process_group
from finetune_trainer.evaluation import base_scores, measures, verification
from finetune_trainer.evaluation.scoring import Scoring
from finetune_trainer.models import device
from finetune_trainer.publish.trained_adapter import TrainedAdapter
from finetune_trainer.runtime.failures import classify
from finetune_trainer.runtime.logs import log
from finetune_trainer.session.session import Session
from finetune_trainer.training import model as training_model

MIN_ROWS = 16
"""Rows and sequences that each process must have to score: it takes longer to load a base for fewer."""
STREAMED_BATCHES = 8
"""Factor for the tokens of a batch where the layers of the model are streamed."""
Result = TypeVar("Result")


def workers_help(session: Session, examples: Examples) -> bool:
    """Return whether the workers stay for the evaluation. They do not if the base is sharded: then it fits no GPU."""
    rows, processes = len(examples.held_out_rows) + len(examples.forgetting_text), session.process.world_size
    return processes > 1 and not training_model.is_sharded(session) and rows >= MIN_ROWS * processes


def run_with_workers(
    session: Session,
    examples: Examples,
    adapter: TrainedAdapter,
    work: Callable[[device.Placement], Result],
    placement: device.Placement,
) -> Result:
    """Call ``work`` in the main process, with the workers in its process group if they wait for it.

    They help with the first placement only. If one of them is lost, the work is done again without them.
    """
    if placement == "gpu" and workers_help(session, examples):
        try:
            with process_group.evaluation_group(session.process, session.scratch):
                session.stop_watching_workers()
                log.info("%d processes evaluate together", session.process.world_size)
                precision = torch.get_float32_matmul_precision()
                process_group.broadcast((adapter.directory, adapter.serving_dtype, precision))
                return work(placement)
        except Exception as error:
            reason, message = classify(error)
            if reason is not Reason.NCCL_ERROR:
                raise
            log.warning("the first process evaluates alone: %s", message)
        device.free_memory()
    return work(placement)


def score_in_worker(session: Session, tokenizer: Any, examples: Examples) -> None:
    """Score a worker's share of the rows, if the workers help. An error is none of the attempt's."""
    if not workers_help(session, examples):
        return
    device.free_memory()
    try:
        with process_group.evaluation_group(session.process, session.scratch):
            directory, dtype, precision = process_group.broadcast(None)
            torch.set_float32_matmul_precision(precision)
            verification.score_share(make_scoring(session, tokenizer, examples, directory, dtype, "gpu"))
    except Exception as error:  # noqa: BLE001 -- the main process then evaluates alone
        log.warning("it ends without its share of the evaluation: %s", classify(error)[1])


def make_scoring(
    session: Session,
    tokenizer: Any,
    examples: Examples,
    adapter: Path,
    dtype: torch.dtype,
    placement: device.Placement,
) -> Scoring:
    """Return how base and adapter are scored.

    Args:
        session: The attempt.
        tokenizer: The model's tokenizer.
        examples: The prepared dataset.
        adapter: Directory of the saved adapter.
        dtype: Data type in which the base is loaded.
        placement: Where the models compute.
    """
    spec, start = session.settings.job.spec, session.inputs.adapter
    padding_id = training_model.score_padding_id(session, tokenizer)
    load_base = training_model.fresh_base_loader(session, dtype, scores_padded_with=padding_id)
    tokens = batch_tokens(session, placement)
    return Scoring(
        base_directory=session.inputs.model,
        adapter=adapter,
        # TRL measures rewards against the adapter that the training starts from
        reference=start.directory if start and spec.objective in measures.COMPARED_WITH_REFERENCE else None,
        load_base=partial(load_base, placement=placement),
        measure=measures.make_measure(spec, examples.held_out, examples.held_out_rows, tokens),
        base_scores=base_scores.open_store(
            session.output,
            session.settings.checkpoints,
            spec=spec,
            inputs=session.inputs,
            examples=examples,
            tokens=tokens,
            padding=padding_id,
            placement=placement,
        ),
        forgetting_text=examples.forgetting_text,
    )


def batch_tokens(session: Session, placement: device.Placement) -> int:
    """Return the maximum number of tokens in a batch.

    Each pass copies all streamed layers to the GPU, which has room for more rows in exchange.
    """
    return session.settings.job.spec.training.max_length * (STREAMED_BATCHES if placement == "streamed" else 1)

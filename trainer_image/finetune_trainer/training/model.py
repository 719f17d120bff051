"""Load the model that is trained: the base in the training's precision, with an adapter on it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import set_seed

from finetune_trainer.methods import adapted_model, inspection, peft_config, starting_adapter
from finetune_trainer.models import device, loading, memory
from finetune_trainer.session.plan import Plan
from finetune_trainer.session.session import Session
from finetune_trainer.training.initial_factors import InitialFactors


def load_base(session: Session, tokenizer: Any, *, reload: bool = False) -> Any:
    """Load the base in the training's precision, quantised if the method asks for it.

    Args:
        session: The attempt.
        tokenizer: The tokenizer, for the padding token of a model that scores texts.
        reload: Whether to load a base again after a sharded training, with its layers spread over the GPUs. The first
            time, a base that will be sharded is loaded into main memory.
    """
    spec = session.settings.job.spec
    precision = device.choose_precision(spec.training)
    if not reload:
        session.run.memory_meter = memory.MemoryMeter()
    return loading.load_base(
        session.inputs.model,
        device.DTYPES[precision],
        loading.make_quantization_config(spec.method, precision),
        scores_padded_with=score_padding_id(session, tokenizer),
        placement="cpu" if is_sharded(session) and not reload else "gpu",
        gpu=session.process.local_rank,
        spread=reload,
        trust_remote_code=spec.model.trust_remote_code,
    )


def fresh_base_loader(
    session: Session, dtype: torch.dtype, *, scores_padded_with: int | None = None
) -> Callable[..., Any]:
    """Return a function that loads the base unquantised in ``dtype``: ``(directory, *, placement)``."""
    return partial(
        loading.load_base,
        dtype=dtype,
        scores_padded_with=scores_padded_with,
        gpu=session.process.local_rank,
        spread=is_sharded(session),
        trust_remote_code=session.settings.job.spec.model.trust_remote_code,
    )


def add_adapter(session: Session, plan: Plan, base: Any, initial: InitialFactors | None = None) -> Any:
    """Add a fresh adapter, or the one that ``model.adapter`` names, to the base.

    The seed is set first, because most adapters start with random numbers. ``initial``: the initial factors of the run,
    for a method whose initialisation changes the base.
    """
    spec, inputs = session.settings.job.spec, session.inputs
    set_seed(spec.training.seed)
    facts = peft_config.BaseInfo(inputs.model, inputs.model_commit, plan.total_steps, spec.objective == "reward")
    add = partial(adapted_model.add_adapter, base, spec.method, facts)
    model = initial.add_adapter(add, is_main_process=session.process.is_main_process) if initial else add()
    if spec.output.merged_model:
        inspection.refuse_unmergeable(model)
    if inputs.adapter is not None:
        starting_adapter.load_weights(model, inputs.adapter.directory, spec.method)
    return model


def is_sharded(session: Session) -> bool:
    """Return whether each process holds only a part of the base."""
    return session.settings.job.spec.training.sharding == "full"


def score_padding_id(session: Session, tokenizer: Any) -> int | None:
    """Return the padding token's id for a reward model, which finds a text's end by it; else None."""
    return int(tokenizer.pad_token_id) if session.settings.job.spec.objective == "reward" else None

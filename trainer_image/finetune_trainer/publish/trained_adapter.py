"""Save the trained adapter to the local disk, and record what must be measured on the trained model."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel

from finetune_trainer.data import dataset
from finetune_trainer.data.tokenizer import copy_tokenizer
from finetune_trainer.evaluation import effect, verification
from finetune_trainer.methods import adapted_model, conversion, initialization, inspection
from finetune_trainer.models import device, loading
from finetune_trainer.models.base_files import canonical_name
from finetune_trainer.runtime.logs import log
from finetune_trainer.session.session import Session
from finetune_trainer.training.initial_factors import initial_factors_path
from finetune_trainer.training.train import TrainedModel


@dataclass(frozen=True)
class TrainedAdapter:
    """A trained adapter, saved in ``directory`` as it is published.

    ``original_directory`` has the form in which it was trained, if that differs. ``peft_type`` is PEFT's name of its
    training method. ``folded`` are the options of a LoRA that were folded into its weights, and ``folding_error`` is
    the largest relative error of B's numbers because of that. ``answers`` are the logits of the trained model, whose
    memory is freed by then.
    """

    directory: Path
    original_directory: Path | None
    peft_type: str
    folded: list[str]
    folding_error: float
    answers: verification.TrainedAnswers
    serving_dtype: torch.dtype
    target_modules: list[str]
    trainable_parameters: int
    base_digest: str


def save_adapter(session: Session, trained: TrainedModel, examples: dataset.Examples) -> TrainedAdapter:
    """Save the adapter, as a plain LoRA if that is exact, and record the trained model's answers."""
    inputs, method, model = session.inputs, session.settings.job.spec.method, trained.model
    trained_directory, directory = session.scratch / "trained", session.scratch / "adapter"
    factors_path = initial_factors_path(session)
    initial = initialization.load_factors(factors_path) if factors_path.is_file() else None
    serving_dtype = loading.choose_serving_dtype(model)
    is_exact = (
        serving_dtype == device.DTYPES[trained.plan.precision]
        and method.quantization is None
        and not device.has_gpu()
        and initial is None
    )
    layout: effect.Layout = "exact" if is_exact else "quantized" if method.quantization else "rounded"
    tokens = session.settings.job.spec.training.max_length
    answers = verification.record_answers(model, method, examples.held_out, layout, tokens)
    peft_type = adapted_model.peft_type(model)
    target_modules, parameters = inspection.adapted_suffixes(model), inspection.count_trainable(model)
    verification.save_weights(model, trained_directory, device.DTYPES[trained.plan.precision])
    lora = conversion.low_rank_factors(model, initial) if isinstance(model, PeftModel) else None
    folded = conversion.list_foldable(model) if lora is not None and peft_type == "LORA" else []
    folding_error = conversion.measure_folding(model) if folded else 0.0
    original_directory: Path | None = trained_directory
    if lora is None:
        trained_directory.rename(directory)
        original_directory = None
    else:
        names = [name for name, _ in model.get_base_model().named_modules()]
        rank = conversion.write_lora(lora, names, directory)
        options = f" ({', '.join(folded)} folded into its weights)" if folded else ""
        log.info("%s is published as a plain LoRA of rank %d%s", peft_type, rank, options)
        if initial is not None:
            original_directory = None  # loading it would need exactly the same decomposition of the base
    for path in filter(None, (directory, original_directory)):
        if (path / "adapter_config.json").is_file():
            conversion.set_base_name(path, canonical_name(session.settings), inputs.model_commit)
    if peft_type == "FULL":
        copy_tokenizer(inputs.model, directory)
    shutil.copyfile(session.scratch / "metrics.jsonl", directory / "metrics.jsonl")
    return TrainedAdapter(
        directory=directory,
        original_directory=original_directory,
        peft_type=peft_type,
        folded=folded,
        folding_error=folding_error,
        answers=answers,
        serving_dtype=serving_dtype,
        target_modules=target_modules,
        trainable_parameters=parameters,
        base_digest=trained.base_digest,
    )

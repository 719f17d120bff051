"""Check that the model has positions for the longest sequence."""

from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.reasons import Reason
from finetune_trainer.models import positions, shapes
from finetune_trainer.models.base_files import ModelMetadata
from finetune_trainer.preflight.findings import CheckResult


def check_length(spec: FineTuneJobSpec, metadata: ModelMetadata, result: CheckResult) -> None:
    """Check that the model has positions for ``maxLength`` and the method's virtual tokens before it."""
    model_positions = positions.find_positions(shapes.language_config(metadata.config), metadata.tensors)
    virtual_tokens = getattr(spec.method.config, "num_virtual_tokens", 0)
    if model_positions is None or spec.training.max_length + virtual_tokens <= model_positions.count:
        return
    message = f"{spec.training.max_length} is more than the model's {model_positions.count} positions"
    field = f"spec.method.{spec.method.name}.numVirtualTokens"
    if virtual_tokens:
        message = (
            f"{spec.training.max_length} tokens and the {virtual_tokens} of {field} are more than the model's "
            f"{model_positions.count} positions"
        )
    if not model_positions.fixed:
        result.warnings.append(f"spec.training.maxLength {message}")
        return
    possible = model_positions.count - virtual_tokens
    remedy = f"set it to {possible} or less" if possible > 0 else f"lower {field}"
    result.add(Reason.SPEC_INVALID, "spec.training.maxLength", f"{message}, and it has no others: {remedy}")

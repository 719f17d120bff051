"""Add a fresh adapter to the base model."""

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from peft.utils import ModulesToSaveWrapper

from finetune_api import methods as api
from finetune_api.reasons import Reason
from finetune_trainer.methods import bottleneck, default_modules, initialization, peft_config
from finetune_trainer.models import loading, unmatched
from finetune_trainer.models.eval_mode import evaluation_mode
from finetune_trainer.runtime.failures import Failure


def add_adapter(
    model: Any, method: api.Method, base: peft_config.BaseInfo, initial: initialization.Factors | None = None
) -> Any:
    """Add a fresh adapter to the base; ``full`` adds none, and makes all weights trainable.

    Args:
        model: The base.
        method: The method.
        base: Facts about the base and the run.
        initial: Factors that PiSSA, OLoRA and LoftQ begin with; None computes them.

    Raises:
        Failure: TARGET_MODULES_NOT_FOUND, or SPEC_INVALID for a setting that the model or the run does not allow.
    """
    block = method.config
    if block.trains_all_weights:
        return model.requires_grad_(True)
    if isinstance(block, api.Bottleneck):
        return bottleneck.add_bottleneck(model, block)
    resolved = default_modules.resolve(model, method)
    try:
        adapted = get_peft_model(model, peft_config.make_peft_config(resolved, base))
    except Exception as error:
        if loading.is_machine_error(error):
            raise
        raise peft_failure(error, method) from error
    unmatched.check_all_matched(adapted, method)
    for module in adapted.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.register_forward_pre_hook(cast_inputs)
    if isinstance(block, api.Lora | api.Qlora) and block.changes_base:
        initialization.initialize(adapted, block.init, base.directory, initial)
    if adapted.active_peft_config.is_prompt_learning:
        check_prompt_learning(adapted, method)
    return adapted


def cast_inputs(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Cast the inputs of a fully trained module to its own dtype, fp32, whatever the base computes in."""
    used = module.original_module if module.disable_adapters else module.modules_to_save["default"]
    return tuple(
        value.to(used.weight.dtype) if torch.is_tensor(value) and value.is_floating_point() else value
        for value in inputs
    )


def check_prompt_learning(adapted: Any, method: api.Method) -> None:
    """Run the model once, because PEFT does not check earlier whether learned tokens fit its attention.

    Raises:
        Failure: MODEL_UNSUPPORTED: they do not fit.
    """
    try:
        with evaluation_mode(adapted):
            adapted(input_ids=torch.tensor([[0, 1]], device=adapted.device))
    except (RuntimeError, ValueError) as error:
        raise Failure(
            Reason.MODEL_UNSUPPORTED,
            f"PEFT's {method.peft.type if method.peft else method.name} does not fit the attention of a model of type "
            f"{adapted.config.model_type!r} ({error}): use lora",
            f"spec.method.{method.name}",
        ) from error


def peft_failure(error: Exception, method: api.Method) -> Failure:
    """Return a Failure with PEFT's message about what it cannot do with this model."""
    field = f"spec.method.{method.name}"
    if "target modules" in str(error).lower():
        name = "options.target_modules" if method.peft else "targetModules"
        return Failure(Reason.TARGET_MODULES_NOT_FOUND, str(error), f"{field}.{name}")
    return Failure(Reason.SPEC_INVALID, f"PEFT cannot apply it to this model: {error}", field)


def peft_type(model: Any) -> str:
    """Return PEFT's name of the method, or ``BOTTLENECK`` or ``FULL``, which PEFT does not have."""
    if isinstance(model, PeftModel):
        kind: Any = model.peft_config["default"].peft_type
        return str(kind.value)
    return "BOTTLENECK" if bottleneck.has_bottleneck(model) else "FULL"


def can_be_disabled(model: Any, method: api.Method) -> bool:
    """Return whether the model without its adapter is its base.

    It is not if all weights or biases are trained, or if the initialisation took a part out of the base.
    """
    if not isinstance(model, PeftModel):
        return bottleneck.has_bottleneck(model)
    return getattr(model.active_peft_config, "bias", "none") == "none" and not method.config.changes_base


def disable_adapter(model: Any) -> AbstractContextManager[None]:
    """Turn the adapter off within this block."""
    disable: Any = (
        model.disable_adapter if isinstance(model, PeftModel) else partial(bottleneck.disable_adapters, model)
    )
    return disable()  # type: ignore[no-any-return]


def needs_no_casts(model: Any, precision: str) -> bool:
    """Return whether PEFT's cast of the adapter's inputs to fp32 can be left out without changing the result.

    This holds for the matrices of a plain LoRA: autocast would round the fp32 copy, which the backward pass keeps, to
    the same bits again. With dropout and DoRA's norms, which come before a matrix, the rounding differs.
    """
    config: Any = model.active_peft_config if isinstance(model, PeftModel) else None
    return (
        precision != "fp32"
        and isinstance(config, LoraConfig)
        and not isinstance(config, AdaLoraConfig)
        and not (config.lora_dropout or config.use_dora or config.modules_to_save)
    )


def to_float32(model: torch.nn.Module) -> None:
    """Cast the trained weights to fp32: an optimizer step is often too small for bf16.

    It also makes a resumed run exact.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)

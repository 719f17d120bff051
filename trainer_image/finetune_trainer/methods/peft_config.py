"""The block of ``spec.method`` as PEFT's configuration, one function for each method, and the base with its fresh adapter."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig, PeftModel, PeftType, get_peft_model
from peft.utils import ModulesToSaveWrapper

from finetune_api import methods as api
from finetune_api.reasons import Reason
from finetune_trainer.methods import bottleneck, loftq
from finetune_trainer.models.eval_mode import evaluating
from finetune_trainer.models.loading import SCORE
from finetune_trainer.runtime.failures import Failure


@dataclass(frozen=True)
class Base:
    """What the methods must know of the base model and the run."""

    directory: Path
    revision: str | None
    total_steps: int
    scores: bool = False
    """Whether it scores texts instead of writing them."""


def add_adapter(model: Any, method: api.Method, base: Base) -> Any:
    """The base with a fresh adapter; for ``full`` the base itself, all of it to be trained.

    Raises Failure(TARGET_MODULES_NOT_FOUND) and, for a setting that the model or the run does not allow, Failure(SPEC_INVALID).
    """
    block = method.config
    if block.trains_all_weights:
        return model.requires_grad_(True)
    if isinstance(block, api.Bottleneck):
        return bottleneck.add(model, block)
    try:
        adapted = get_peft_model(model, configuration(method, base))
    except (ValueError, TypeError, NotImplementedError) as error:
        raise refusal(error, method) from error
    for module in adapted.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.register_forward_pre_hook(in_its_precision)
    if isinstance(block, api.Qlora) and block.init == "loftq":
        loftq.initialise(adapted, base.directory)
    if adapted.active_peft_config.is_prompt_learning:
        try_prompt(adapted, method)
    return adapted


def in_its_precision(module: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """A module that is trained whole is held in fp32, whatever the base computes in."""
    used = module.original_module if module.disable_adapters else module.modules_to_save["default"]
    return tuple(
        value.to(used.weight.dtype) if torch.is_tensor(value) and value.is_floating_point() else value
        for value in given
    )


def try_prompt(adapted: Any, method: api.Method) -> None:
    """Answer once: PEFT finds only then that the learned tokens do not fit an architecture's attention. Raises Failure(MODEL_UNSUPPORTED)."""
    try:
        with evaluating(adapted):
            adapted(input_ids=torch.tensor([[0, 1]], device=adapted.device))
    except (RuntimeError, ValueError) as error:
        raise Failure(
            Reason.MODEL_UNSUPPORTED,
            f"PEFT's {method.peft.type if method.peft else method.name} does not fit the attention of a model of type {adapted.config.model_type!r} ({error}): use lora",
            f"spec.method.{method.name}",
        ) from error


def refusal(error: Exception, method: api.Method) -> Failure:
    """What PEFT does not do with this model, in PEFT's words."""
    field = f"spec.method.{method.name}"
    if "target modules" in str(error).lower():
        return Failure(Reason.TARGET_MODULES_NOT_FOUND, str(error), f"{field}.targetModules")
    return Failure(Reason.SPEC_INVALID, f"PEFT cannot apply it to this model: {error}", field)


def configuration(method: api.Method, base: Base) -> PeftConfig:
    """PEFT's configuration of the one method that is set."""
    block = method.config
    make = CONFIGURATIONS[type(block)]
    config: PeftConfig = make(block, base)
    config.task_type = peft.TaskType.CAUSAL_LM
    if base.scores:
        config.task_type = peft.TaskType.SEQ_CLS
        config.modules_to_save = [*(getattr(config, "modules_to_save", None) or []), SCORE]  # type: ignore[attr-defined]
    config.revision = base.revision
    return config


def lora(block: api.LoraFields, base: Base) -> PeftConfig:
    """LoRA and its kin."""
    first: str = getattr(block, "init", "default")
    return peft.LoraConfig(
        **targeted(block),
        r=block.rank,
        lora_alpha=number(block.alpha),
        lora_dropout=block.dropout,
        bias=block.bias,
        use_rslora=block.use_rslora,
        use_dora=isinstance(block, api.Dora),
        rank_pattern=dict(block.rank_pattern),
        alpha_pattern={key: number(alpha) for key, alpha in block.alpha_pattern.items()},
        init_lora_weights=True if first in ("default", "loftq") else first,  # type: ignore[arg-type]
    )


def adalora(block: api.Adalora, base: Base) -> PeftConfig:
    """AdaLoRA, with a schedule that fits the run. Raises Failure(SPEC_INVALID) where none does."""
    total = base.total_steps
    tinit = block.tinit if block.tinit is not None else total // 10
    tfinal = block.tfinal if block.tfinal is not None else max(3 * total // 10, 1)
    if tinit >= total - tfinal:
        raise Failure(
            Reason.SPEC_INVALID,
            f"tinit {tinit} and tfinal {tfinal} leave no step of {total} to take ranks away in: lower them, or train for longer",
            "spec.method.adalora.tinit",
        )
    return peft.AdaLoraConfig(
        **targeted(block),
        init_r=block.init_rank,
        target_r=block.target_rank,
        lora_alpha=number(block.alpha),
        lora_dropout=block.dropout,
        tinit=tinit,
        tfinal=tfinal,
        deltaT=block.delta_t,
        beta1=block.beta1,
        beta2=block.beta2,
        orth_reg_weight=block.orth_reg_weight,
        total_step=total,
    )


def ia3(block: api.Ia3, base: Base) -> PeftConfig:
    """IA³."""
    return peft.IA3Config(**targeted(block), feedforward_modules=block.feedforward_modules)


def vera(block: api.Vera, base: Base) -> PeftConfig:
    """VeRA."""
    return peft.VeraConfig(
        **targeted(block),
        r=block.rank,
        vera_dropout=block.dropout,
        d_initial=block.d_initial,
        projection_prng_key=block.projection_prng_key,
    )


def loha(block: api.Loha, base: Base) -> PeftConfig:
    """LoHa."""
    return peft.LoHaConfig(
        **targeted(block),
        r=block.rank,
        alpha=number(block.alpha),
        rank_dropout=block.rank_dropout,
        module_dropout=block.module_dropout,
    )


def lokr(block: api.Lokr, base: Base) -> PeftConfig:
    """LoKr."""
    return peft.LoKrConfig(
        **targeted(block),
        r=block.rank,
        alpha=number(block.alpha),
        rank_dropout=block.rank_dropout,
        module_dropout=block.module_dropout,
        decompose_both=block.decompose_both,
        decompose_factor=block.decompose_factor,
    )


def oft(block: api.Oft, base: Base) -> PeftConfig:
    """OFT."""
    config = peft.OFTConfig(
        **targeted(block),
        r=0,
        oft_block_size=block.oft_block_size,
        module_dropout=block.module_dropout,
        coft=block.coft,
        block_share=block.block_share,
    )
    if block.eps is not None:
        config.eps = block.eps
    return config


def miss(block: api.Miss, base: Base) -> PeftConfig:
    """MiSS."""
    return peft.MissConfig(**targeted(block), r=block.rank, miss_dropout=block.dropout)


def prefix_tuning(block: api.PrefixTuning, base: Base) -> PeftConfig:
    """Prefix tuning."""
    return peft.PrefixTuningConfig(
        num_virtual_tokens=block.num_virtual_tokens,
        prefix_projection=block.prefix_projection,
        encoder_hidden_size=block.encoder_hidden_size,  # type: ignore[arg-type]
    )


def prompt_tuning(block: api.PromptTuning, base: Base) -> PeftConfig:
    """Prompt tuning."""
    first = {"random": "RANDOM", "sampleVocab": "SAMPLE_VOCAB", "text": "TEXT"}[block.prompt_tuning_init]
    return peft.PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=block.num_virtual_tokens,
        prompt_tuning_init=first,
        prompt_tuning_init_text=block.prompt_tuning_init_text,
        tokenizer_name_or_path=str(base.directory) if first == "TEXT" else None,
    )


def p_tuning(block: api.PTuning, base: Base) -> PeftConfig:
    """P-tuning."""
    return peft.PromptEncoderConfig(
        num_virtual_tokens=block.num_virtual_tokens,
        encoder_reparameterization_type=block.encoder_reparameterization_type,
        encoder_hidden_size=block.encoder_hidden_size,  # type: ignore[arg-type]
        encoder_num_layers=block.encoder_num_layers,
        encoder_dropout=block.encoder_dropout,
    )


def any_other(block: api.Peft, base: Base) -> PeftConfig:
    """Whatever PEFT has. That the names are PEFT's was checked with the job; the values are PEFT's to judge."""
    config: PeftConfig = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(block.type)](
        **{"task_type": "CAUSAL_LM", **block.options}
    )
    return config


CONFIGURATIONS: dict[type[api.Block], Callable[[Any, Base], PeftConfig]] = {
    api.Lora: lora,
    api.Qlora: lora,
    api.Dora: lora,
    api.Adalora: adalora,
    api.Ia3: ia3,
    api.Vera: vera,
    api.Loha: loha,
    api.Lokr: lokr,
    api.Oft: oft,
    api.Miss: miss,
    api.PrefixTuning: prefix_tuning,
    api.PromptTuning: prompt_tuning,
    api.PTuning: p_tuning,
    api.Peft: any_other,
}


def targeted(block: api.Targeted) -> dict[str, Any]:
    """The options that all methods with target modules have. None leaves the choice to PEFT, by architecture."""
    return {"target_modules": block.target_modules or None, "modules_to_save": block.modules_to_save or None}


def number(alpha: float) -> Any:
    """PEFT writes alpha into its configuration as it gets it, and 32 reads better than 32.0."""
    return int(alpha) if math.isfinite(alpha) and float(alpha).is_integer() else alpha


def peft_type(model: Any) -> str:
    """PEFT's name of the method, and for what PEFT does not have ``BOTTLENECK`` and ``FULL``."""
    if isinstance(model, PeftModel):
        kind: Any = model.peft_config["default"].peft_type
        return str(kind.value)
    return "BOTTLENECK" if bottleneck.is_in(model) else "FULL"


def to_float32(model: torch.nn.Module) -> None:
    """Hold what is trained in fp32: an optimizer step is often smaller than bf16 can tell, and a resumed run must be exact."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)

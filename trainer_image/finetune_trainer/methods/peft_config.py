"""Convert each block of ``spec.method`` to PEFT's configuration, with one function for each method."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig, PeftType

from finetune_api import methods as api
from finetune_api.linear import SCORE_HEAD
from finetune_api.reasons import Reason
from finetune_trainer.runtime.failures import Failure


@dataclass(frozen=True)
class BaseInfo:
    """The facts about the base model and the run that the methods need."""

    directory: Path
    revision: str | None
    total_steps: int
    scores: bool = False
    """Whether the model scores texts instead of writing them."""


def make_peft_config(method: api.Method, base: BaseInfo) -> PeftConfig:
    """Return PEFT's configuration of the method that is set."""
    block = method.config
    make = CONFIGURATIONS[type(block)]
    config: PeftConfig = make(block, base)
    config.task_type = peft.TaskType.CAUSAL_LM
    if base.scores:
        config.task_type = peft.TaskType.SEQ_CLS
        config.modules_to_save = [*(getattr(config, "modules_to_save", None) or []), SCORE_HEAD]  # type: ignore[attr-defined]
    config.revision = base.revision
    return config


PEFT_INITIALIZATIONS: dict[str, bool | str] = {"default": True, "loftq": True, "pissa": True, "olora": True}
"""PEFT's ``init_lora_weights`` for each initialization with another name.

``initialization.initialize`` computes LoftQ, PiSSA and OLoRA later.
"""


def lora_config(block: api.LoraFields, base: BaseInfo) -> PeftConfig:
    """Configure LoRA, QLoRA or DoRA."""
    initialization: str = getattr(block, "init", "default")
    return peft.LoraConfig(
        **target_options(block),
        r=block.rank,
        lora_alpha=plain_number(block.alpha),
        lora_dropout=block.dropout,
        bias=block.bias,
        use_rslora=block.use_rslora,
        use_dora=isinstance(block, api.Dora),
        rank_pattern=dict(block.rank_pattern),
        alpha_pattern={key: plain_number(alpha) for key, alpha in block.alpha_pattern.items()},
        init_lora_weights=PEFT_INITIALIZATIONS.get(initialization, initialization),  # type: ignore[arg-type]
    )


def adalora_config(block: api.Adalora, base: BaseInfo) -> PeftConfig:
    """Configure AdaLoRA with a schedule that fits the run.

    Raises:
        Failure: SPEC_INVALID if the schedule leaves no step for the removal of ranks.
    """
    try:
        tinit, tfinal = block.plan_schedule(base.total_steps)
    except ValueError as error:
        raise Failure(Reason.SPEC_INVALID, str(error), "spec.method.adalora.tinit") from error
    return peft.AdaLoraConfig(
        **target_options(block),
        init_r=block.init_rank,
        target_r=block.target_rank,
        lora_alpha=plain_number(block.alpha),
        lora_dropout=block.dropout,
        tinit=tinit,
        tfinal=tfinal,
        deltaT=block.delta_t,
        beta1=block.beta1,
        beta2=block.beta2,
        orth_reg_weight=block.orth_reg_weight,
        total_step=base.total_steps,
    )


def ia3_config(block: api.Ia3, base: BaseInfo) -> PeftConfig:
    """Configure IA³."""
    return peft.IA3Config(**target_options(block), feedforward_modules=block.feedforward_modules)


def vera_config(block: api.Vera, base: BaseInfo) -> PeftConfig:
    """Configure VeRA."""
    return peft.VeraConfig(
        **target_options(block),
        r=block.rank,
        vera_dropout=block.dropout,
        d_initial=block.d_initial,
        projection_prng_key=block.projection_prng_key,
    )


def loha_config(block: api.Loha, base: BaseInfo) -> PeftConfig:
    """Configure LoHa."""
    return peft.LoHaConfig(
        **target_options(block),
        r=block.rank,
        alpha=plain_number(block.alpha),
        rank_dropout=block.rank_dropout,
        module_dropout=block.module_dropout,
    )


def lokr_config(block: api.Lokr, base: BaseInfo) -> PeftConfig:
    """Configure LoKr."""
    return peft.LoKrConfig(
        **target_options(block),
        r=block.rank,
        alpha=plain_number(block.alpha),
        rank_dropout=block.rank_dropout,
        module_dropout=block.module_dropout,
        decompose_both=block.decompose_both,
        decompose_factor=block.decompose_factor,
    )


def oft_config(block: api.Oft, base: BaseInfo) -> PeftConfig:
    """Configure OFT."""
    config = peft.OFTConfig(
        **target_options(block),
        r=0,
        oft_block_size=block.oft_block_size,
        module_dropout=block.module_dropout,
        coft=block.coft,
        block_share=block.block_share,
    )
    if block.eps is not None:
        config.eps = block.eps
    return config


def miss_config(block: api.Miss, base: BaseInfo) -> PeftConfig:
    """Configure MiSS."""
    return peft.MissConfig(**target_options(block), r=block.rank, miss_dropout=block.dropout)


def prefix_tuning_config(block: api.PrefixTuning, base: BaseInfo) -> PeftConfig:
    """Configure prefix tuning."""
    return peft.PrefixTuningConfig(
        num_virtual_tokens=block.num_virtual_tokens,
        prefix_projection=block.prefix_projection,
        encoder_hidden_size=block.encoder_hidden_size,  # type: ignore[arg-type]
    )


def prompt_tuning_config(block: api.PromptTuning, base: BaseInfo) -> PeftConfig:
    """Configure prompt tuning."""
    initialization = {"random": "RANDOM", "sampleVocab": "SAMPLE_VOCAB", "text": "TEXT"}[block.prompt_tuning_init]
    return peft.PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=block.num_virtual_tokens,
        prompt_tuning_init=initialization,
        prompt_tuning_init_text=block.prompt_tuning_init_text,
        tokenizer_name_or_path=str(base.directory) if initialization == "TEXT" else None,
    )


def p_tuning_config(block: api.PTuning, base: BaseInfo) -> PeftConfig:
    """Configure P-tuning."""
    return peft.PromptEncoderConfig(
        num_virtual_tokens=block.num_virtual_tokens,
        encoder_reparameterization_type=block.encoder_reparameterization_type,
        encoder_hidden_size=block.encoder_hidden_size,  # type: ignore[arg-type]
        encoder_num_layers=block.encoder_num_layers,
        encoder_dropout=block.encoder_dropout,
    )


def other_config(block: api.Peft, base: BaseInfo) -> PeftConfig:
    """Configure any other method of PEFT. The job's checks know its option names; PEFT checks the values."""
    config: PeftConfig = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(block.type)](
        **{"task_type": "CAUSAL_LM", **block.options}
    )
    return config


CONFIGURATIONS: dict[type[api.Block], Callable[[Any, BaseInfo], PeftConfig]] = {
    api.Lora: lora_config,
    api.Qlora: lora_config,
    api.Dora: lora_config,
    api.Adalora: adalora_config,
    api.Ia3: ia3_config,
    api.Vera: vera_config,
    api.Loha: loha_config,
    api.Lokr: lokr_config,
    api.Oft: oft_config,
    api.Miss: miss_config,
    api.PrefixTuning: prefix_tuning_config,
    api.PromptTuning: prompt_tuning_config,
    api.PTuning: p_tuning_config,
    api.Peft: other_config,
}


def target_options(block: api.Targeted) -> dict[str, Any]:
    """Return the options that all methods with target modules share; None lets PEFT choose by architecture."""
    return {"target_modules": block.target_modules or None, "modules_to_save": block.modules_to_save or None}


def plain_number(alpha: float) -> Any:
    """Return 32 for 32.0, because PEFT writes alpha into its configuration as it is given."""
    return int(alpha) if math.isfinite(alpha) and float(alpha).is_integer() else alpha

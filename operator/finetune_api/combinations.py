"""Sections of a FineTuneJob that do not go together: each rule once, as CEL for the API server and as a function for files that never meet one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

NO_PREFERENCE = "preference belongs to the objectives dpo, kto and orpo: remove it, or set one of them"
NO_PACKING = "packing is for objective sft only: set training.packing to false"
KTO_BATCH = "objective kto compares the rows of a batch: set training.perDeviceBatchSize to 2 or more"
PAIRS = "objectives dpo, orpo and reward learn from pairs: set dataset.format to preference or auto, without a template"
NO_PAIRS = "dataset.format preference is for the objectives dpo, orpo and reward: set one of them"
LABELS = "objective kto learns from prompts, completions and labels: set dataset.format to promptCompletion or auto"
ONE_ADAPTER = (
    "objectives dpo and kto keep a frozen copy of the adapter, which does not go with adalora (PEFT allows one) and init pissa, olora and loftq (they change "
    "the base): choose another method, or objective orpo"
)
SCORES = "objective reward trains a head beside the adapter: choose method lora, qlora or dora"
NO_MERGED_SCORES = (
    "mergedModel does not go with objective reward, whose head is no part of the base: set mergedModel to false"
)
NO_PROMPTS = "objective orpo does not go with promptTuning and pTuning in TRL: choose another method, or objective dpo"
NO_PERPLEXITY = (
    "a gate on perplexity needs objective sft, whose loss is that of single tokens: set evaluation.gate.metric to loss"
)
NO_EVALUATIONS = "earlyStopping needs evaluations on the way: set evaluation.everySteps"
NOTHING_TO_SELECT = "selectBest needs evaluations on the way: set evaluation.everySteps"
COMPARED_ALONE = (
    "compareWithFull trains the base whole on one GPU: set resources.gpusPerNode to 1, or compareWithFull to false"
)
NO_TEXTS = "forgetting is measured on a text, of which a model of objective reward has no likelihood: remove evaluation.forgetting"
SHARDED = (
    "sharding full holds the parts of a frozen base on several GPUs: it needs resources.gpusPerNode above 1, objective sft, and method lora with neither "
    "modulesToSave nor init pissa and olora, which change the base, and without compile always: set sharding to none, or those fields accordingly"
)
COMPARED_WITH_ITSELF = "compareWithFull compares an adapter with full fine-tuning, which method full is already: set compareWithFull to false"
NO_FULL_SCORES = (
    "compareWithFull does not go with objective reward, which method full does not train: set compareWithFull to false"
)
NO_SAME_BUDGET = (
    "compareWithFull trains the base with the adapter's data and steps, but that of model.adapter had others before: "
    "set compareWithFull to false, or remove model.adapter"
)
PAIRED = ("dpo", "orpo", "reward")
PREFIX_TYPES = ("PREFIX_TUNING", "CARTRIDGE")
PROMPT_TYPES = (*PREFIX_TYPES, "PROMPT_TUNING", "P_TUNING", "CPT")
"""Of PEFT's methods those that put learned tokens, or their keys and values, before the text."""
PREFIX = f"(has(self.method.prefixTuning) || (has(self.method.peft) && self.method.peft.type in {list(PREFIX_TYPES)}))"
VIRTUAL = (
    "(has(self.method.promptTuning) || has(self.method.prefixTuning) || has(self.method.pTuning) || "
    f"(has(self.method.peft) && self.method.peft.type in {list(PROMPT_TYPES)}))"
)


@dataclass(frozen=True)
class Rule:
    """``broken`` says of a FineTuneJobSpec that it breaks the rule; ``cel`` is true where it does not."""

    cel: str
    field: str
    message: str
    broken: Callable[[Any], bool]


def _virtual(spec: Any) -> bool:
    method = spec.method
    named = any((method.prompt_tuning, method.prefix_tuning, method.p_tuning))
    return named or (method.peft is not None and method.peft.type in PROMPT_TYPES)


def _prefix(spec: Any) -> bool:
    method = spec.method
    return method.prefix_tuning is not None or (method.peft is not None and method.peft.type in PREFIX_TYPES)


def _unshardable(spec: Any) -> bool:
    lora = spec.method.lora
    whole = lora is None or lora.init in ("pissa", "olora") or bool(lora.modules_to_save)
    alone = spec.resources.processes < 2 or spec.training.compile == "always"
    return whole or alone or spec.objective != "sft"


RULES = [
    Rule(
        "self.training.sharding == 'none' || (self.training.compile != 'always' && self.resources.gpusPerNode > 1 && self.objective == 'sft' && has(self.method.lora) && "
        "!(self.method.lora.init in ['pissa', 'olora']) && size(self.method.lora.modulesToSave) == 0)",
        ".training.sharding",
        SHARDED,
        lambda spec: spec.training.sharding != "none" and _unshardable(spec),
    ),
    Rule(
        f"!(self.training.packing && {VIRTUAL})",
        ".training.packing",
        "packing does not go with promptTuning, prefixTuning and pTuning, which put their tokens before each sequence and not before each packed example: "
        "set packing to false",
        lambda spec: spec.training.packing and _virtual(spec),
    ),
    Rule(
        f"!(self.training.gradientCheckpointing == 'always' && {PREFIX})",
        ".training.gradientCheckpointing",
        "gradientCheckpointing does not go with prefixTuning, whose keys and values would be lost in the second pass: set gradientCheckpointing to auto",
        lambda spec: spec.training.gradient_checkpointing == "always" and _prefix(spec),
    ),
    Rule(
        f"!(self.output.mergedModel && ({VIRTUAL} || has(self.method.bottleneck)))",
        ".output.mergedModel",
        "mergedModel does not go with promptTuning, prefixTuning, pTuning and bottleneck, which are no update of the base's weights: set mergedModel to false",
        lambda spec: spec.output.merged_model and (_virtual(spec) or spec.method.bottleneck is not None),
    ),
    Rule(
        "!(self.output.mergedModel && has(self.method.full))",
        ".output.mergedModel",
        "mergedModel does not go with full, which gives a whole model already: set mergedModel to false",
        lambda spec: spec.output.merged_model and spec.method.full is not None,
    ),
    Rule(
        "!(has(self.model.adapter) && (has(self.method.full) || has(self.method.adalora) || has(self.method.pTuning) || "
        "(has(self.method.prefixTuning) && self.method.prefixTuning.prefixProjection)))",
        ".model.adapter",
        "model.adapter does not go with full, adalora, pTuning and prefixProjection, whose adapters do not hold all that was trained: remove it, or choose lora",
        lambda spec: (
            spec.model.adapter is not None
            and bool(
                spec.method.full
                or spec.method.adalora
                or spec.method.p_tuning
                or (spec.method.prefix_tuning and spec.method.prefix_tuning.prefix_projection)
            )
        ),
    ),
    Rule(
        "!(has(self.model.adapter) && ((has(self.method.lora) && self.method.lora.init in ['pissa', 'olora']) || "
        "(has(self.method.qlora) && self.method.qlora.init == 'loftq')))",
        ".model.adapter",
        "model.adapter does not go with init pissa, olora and loftq, which are other beginnings: set init to default",
        lambda spec: (
            spec.model.adapter is not None and getattr(spec.method.config, "init", "") in ("pissa", "olora", "loftq")
        ),
    ),
    Rule(
        "!has(self.preference) || self.objective in ['dpo', 'kto', 'orpo']",
        ".preference",
        NO_PREFERENCE,
        lambda spec: spec.preference is not None and spec.objective in ("sft", "reward"),
    ),
    Rule(
        "self.objective == 'sft' || !self.training.packing",
        ".training.packing",
        NO_PACKING,
        lambda spec: spec.objective != "sft" and spec.training.packing,
    ),
    Rule(
        "self.objective != 'kto' || self.training.perDeviceBatchSize > 1",
        ".training.perDeviceBatchSize",
        KTO_BATCH,
        lambda spec: spec.objective == "kto" and spec.training.per_device_batch_size < 2,
    ),
    Rule(
        "!(self.objective in ['dpo', 'orpo', 'reward']) || (self.dataset.format in ['auto', 'preference'] && !has(self.dataset.template))",
        ".dataset.format",
        PAIRS,
        lambda spec: (
            spec.objective in PAIRED
            and (spec.dataset.format not in ("auto", "preference") or spec.dataset.template is not None)
        ),
    ),
    Rule(
        "self.dataset.format != 'preference' || self.objective in ['dpo', 'orpo', 'reward']",
        ".dataset.format",
        NO_PAIRS,
        lambda spec: spec.dataset.format == "preference" and spec.objective not in PAIRED,
    ),
    Rule(
        "self.objective != 'kto' || self.dataset.format in ['auto', 'promptCompletion', 'preference']",
        ".dataset.format",
        LABELS,
        lambda spec: spec.objective == "kto" and spec.dataset.format not in ("auto", "promptCompletion", "preference"),
    ),
    Rule(
        "!(self.objective in ['dpo', 'kto']) || !(has(self.method.adalora) || (has(self.method.peft) && self.method.peft.type == 'ADALORA') || "
        "(has(self.method.lora) && self.method.lora.init in ['pissa', 'olora']) || "
        "(has(self.method.qlora) && self.method.qlora.init == 'loftq'))",
        ".objective",
        ONE_ADAPTER,
        lambda spec: (
            spec.objective in ("dpo", "kto")
            and (
                spec.method.adalora is not None
                or getattr(spec.method.config, "type", "") == "ADALORA"
                or getattr(spec.method.config, "init", "") in ("pissa", "olora", "loftq")
            )
        ),
    ),
    Rule(
        f"self.objective != 'orpo' || !{VIRTUAL} || {PREFIX}",
        ".objective",
        NO_PROMPTS,
        lambda spec: spec.objective == "orpo" and _virtual(spec) and not _prefix(spec),
    ),
    Rule(
        "self.objective != 'reward' || has(self.method.lora) || has(self.method.qlora) || has(self.method.dora)",
        ".objective",
        SCORES,
        lambda spec: spec.objective == "reward" and spec.method.name not in ("lora", "qlora", "dora"),
    ),
    Rule(
        "!(self.objective == 'reward' && self.output.mergedModel)",
        ".output.mergedModel",
        NO_MERGED_SCORES,
        lambda spec: spec.objective == "reward" and spec.output.merged_model,
    ),
    Rule(
        "self.objective == 'sft' || !has(self.evaluation.gate) || self.evaluation.gate.metric != 'perplexity'",
        ".evaluation.gate.metric",
        NO_PERPLEXITY,
        lambda spec: (
            spec.objective != "sft" and spec.evaluation.gate is not None and spec.evaluation.gate.metric == "perplexity"
        ),
    ),
    Rule(
        "!has(self.training.earlyStopping) || has(self.evaluation.everySteps)",
        ".training.earlyStopping",
        NO_EVALUATIONS,
        lambda spec: spec.training.early_stopping is not None and spec.evaluation.every_steps is None,
    ),
    Rule(
        "!self.evaluation.selectBest || has(self.evaluation.everySteps)",
        ".evaluation.selectBest",
        NOTHING_TO_SELECT,
        lambda spec: spec.evaluation.select_best and spec.evaluation.every_steps is None,
    ),
    Rule(
        "!self.evaluation.compareWithFull || self.resources.gpusPerNode <= 1",
        ".evaluation.compareWithFull",
        COMPARED_ALONE,
        lambda spec: spec.evaluation.compare_with_full and spec.resources.processes > 1,
    ),
    Rule(
        "self.objective != 'reward' || !has(self.evaluation.forgetting)",
        ".evaluation.forgetting",
        NO_TEXTS,
        lambda spec: spec.objective == "reward" and spec.evaluation.forgetting is not None,
    ),
    Rule(
        "!(self.evaluation.compareWithFull && has(self.method.full))",
        ".evaluation.compareWithFull",
        COMPARED_WITH_ITSELF,
        lambda spec: spec.evaluation.compare_with_full and spec.method.full is not None,
    ),
    Rule(
        "!(self.evaluation.compareWithFull && self.objective == 'reward')",
        ".evaluation.compareWithFull",
        NO_FULL_SCORES,
        lambda spec: spec.evaluation.compare_with_full and spec.objective == "reward",
    ),
    Rule(
        "!(self.evaluation.compareWithFull && has(self.model.adapter))",
        ".evaluation.compareWithFull",
        NO_SAME_BUDGET,
        lambda spec: spec.evaluation.compare_with_full and spec.model.adapter is not None,
    ),
]
CEL_RULES = [{"rule": rule.cel, "message": rule.message, "fieldPath": rule.field} for rule in RULES]


def allows(spec: Any) -> bool:
    """Whether a FineTuneJobSpec breaks none of the rules."""
    return not any(rule.broken(spec) for rule in RULES)


def check(spec: Any) -> None:
    """Raise ValueError with all messages of the rules that a FineTuneJobSpec breaks."""
    if found := [rule.message for rule in RULES if rule.broken(spec)]:
        raise ValueError("; ".join(found))

"""Define the rules between the evaluation and the objective, the method and the training."""

from finetune_api.combinations.method import FULL
from finetune_api.combinations.rule import Rule

NO_PERPLEXITY = (
    "a gate on perplexity needs objective sft, whose loss is that of single tokens: set evaluation.gate.metric to loss"
)
NO_EVALUATIONS = "earlyStopping needs evaluations during the training: set evaluation.everySteps or everyEpoch"
NOTHING_TO_SELECT = "selectBest needs evaluations during the training: set evaluation.everySteps or everyEpoch"
ONE_RHYTHM = "everySteps and everyEpoch are both set: remove one of them"
ONE_INTERVAL = "everySteps and everyMinutes are both set: remove one of them"
COMPARED_ALONE = (
    "compareWithFull trains all weights of the base on one GPU: set resources.gpusPerNode to 1, or compareWithFull to "
    "false"
)
NO_TEXTS = (
    "forgetting is measured by the likelihood of a text, which a model of objective reward does not compute: remove "
    "evaluation.forgetting"
)
COMPARED_WITH_ITSELF = (
    "compareWithFull compares an adapter with full fine-tuning, and method full is full fine-tuning: set "
    "compareWithFull to false"
)
NO_FULL_SCORES = (
    "compareWithFull cannot be combined with objective reward, which method full does not support: set "
    "compareWithFull to false"
)
NO_SAME_BUDGET = (
    "compareWithFull trains the base with this job's data and steps, but model.adapter was trained before with "
    "others: set compareWithFull to false, or remove model.adapter"
)

RULES = [
    Rule(
        "self.objective == 'sft' || !has(self.evaluation.gate) || self.evaluation.gate.metric != 'perplexity'",
        ".evaluation.gate.metric",
        NO_PERPLEXITY,
        lambda spec: (
            spec.objective != "sft" and spec.evaluation.gate is not None and spec.evaluation.gate.metric == "perplexity"
        ),
    ),
    Rule(
        "!has(self.training.earlyStopping) || has(self.evaluation.everySteps) || self.evaluation.everyEpoch",
        ".training.earlyStopping",
        NO_EVALUATIONS,
        lambda spec: spec.training.early_stopping is not None and not spec.evaluation.recurs,
    ),
    Rule(
        "!self.evaluation.selectBest || has(self.evaluation.everySteps) || self.evaluation.everyEpoch",
        ".evaluation.selectBest",
        NOTHING_TO_SELECT,
        lambda spec: spec.evaluation.select_best and not spec.evaluation.recurs,
    ),
    Rule(
        "!(has(self.evaluation.everySteps) && self.evaluation.everyEpoch)",
        ".evaluation.everyEpoch",
        ONE_RHYTHM,
        lambda spec: spec.evaluation.every_steps is not None and spec.evaluation.every_epoch,
    ),
    Rule(
        "!(has(self.checkpoint.everySteps) && has(self.checkpoint.everyMinutes))",
        ".checkpoint.everyMinutes",
        ONE_INTERVAL,
        lambda spec: spec.checkpoint.every_steps is not None and spec.checkpoint.every_minutes is not None,
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
        f"!(self.evaluation.compareWithFull && {FULL.cel})",
        ".evaluation.compareWithFull",
        COMPARED_WITH_ITSELF,
        lambda spec: spec.evaluation.compare_with_full and spec.method in FULL,
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

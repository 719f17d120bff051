"""Wrong outputs, trackers, evaluations and schedules."""

from finetune_api.combinations.evaluation import (
    COMPARED_ALONE,
    COMPARED_WITH_ITSELF,
    NO_EVALUATIONS,
    NO_FULL_SCORES,
    NO_PERPLEXITY,
    NO_SAME_BUDGET,
    NO_TEXTS,
    NOTHING_TO_SELECT,
    ONE_INTERVAL,
    ONE_RHYTHM,
)
from finetune_api.gate import NO_LIMIT
from finetune_api.scheduler import describe_unused
from tests.api.case import STARTED, of_job

METRIC = "spec.evaluation.gate.metric"

RUN_CASES = [
    of_job("no bucket", {"spec.output.s3": {}}, "spec.output.s3.bucket", "Required value", "Field required"),
    of_job(
        "a hub's repository without its owner",
        {"spec.output.hub": {"repo": "adapter", "secretRef": {"name": "hub"}}},
        "spec.output.hub.repo",
        "should match",
    ),
    of_job(
        "a hub without a token",
        {"spec.output.hub": {"repo": "org/adapter"}},
        "spec.output.hub.secretRef",
        "Required value",
        "Field required",
    ),
    of_job(
        "an MLflow server without a scheme",
        {"spec.tracking": {"mlflow": {"uri": "mlflow:5000"}}},
        "spec.tracking.mlflow.uri",
        "should match",
    ),
    of_job(
        "Weights & Biases without a key",
        {"spec.tracking": {"wandb": {"project": "a"}}},
        "spec.tracking.wandb.secretRef",
        "Required value",
        "Field required",
    ),
    of_job(
        "too many samples", {"spec.evaluation": {"samples": 21}}, "spec.evaluation.samples", "less than or equal to 20"
    ),
    of_job(
        "a gate without a limit", {"spec.evaluation": {"gate": {"metric": "loss"}}}, "spec.evaluation.gate", NO_LIMIT
    ),
    of_job(
        "a gate on what is not measured",
        {"spec.evaluation": {"gate": {"metric": "f1", "max": 1}}},
        METRIC,
        'values: "loss", "perplexity"',
        "'loss' or 'perplexity'",
    ),
    of_job(
        "a gate on the perplexity of preferences",
        {"spec.objective": "orpo", "spec.evaluation": {"gate": {"metric": "perplexity", "max": 9}}},
        "spec",
        NO_PERPLEXITY,
    ),
    of_job(
        "an early stop without evaluations", {"spec.training.earlyStopping": {"patience": 2}}, "spec", NO_EVALUATIONS
    ),
    of_job(
        "no patience",
        {"spec.training.earlyStopping": {"patience": 0}},
        "spec.training.earlyStopping.patience",
        "greater than or equal to 1",
    ),
    of_job(
        "evaluations in two rhythms", {"spec.evaluation": {"everySteps": 1, "everyEpoch": True}}, "spec", ONE_RHYTHM
    ),
    of_job(
        "checkpoints in two intervals", {"spec.checkpoint": {"everySteps": 1, "everyMinutes": 5}}, "spec", ONE_INTERVAL
    ),
    *(
        of_job(
            f"{setting} of another schedule",
            {"spec.training.schedulerArgs": {setting: value}},
            "spec.training",
            describe_unused(setting),
        )
        for setting, value in {"numCycles": 2, "power": 2, "minLearningRateRatio": 0.1, "decayRatio": 0.1}.items()
    ),
    of_job("the best of no evaluations", {"spec.evaluation": {"selectBest": True}}, "spec", NOTHING_TO_SELECT),
    of_job(
        "forgetting of a model without texts",
        {"spec.objective": "reward", "spec.evaluation": {"forgetting": {}}},
        "spec",
        NO_TEXTS,
    ),
    of_job(
        "full fine-tuning compared with itself",
        {"spec.method": {"full": {}}, "spec.evaluation": {"compareWithFull": True}},
        "spec",
        COMPARED_WITH_ITSELF,
    ),
    of_job(
        "full fine-tuning of a reward model",
        {"spec.objective": "reward", "spec.evaluation": {"compareWithFull": True}},
        "spec",
        NO_FULL_SCORES,
    ),
    of_job(
        "a comparison with less training",
        {"spec.model.adapter": STARTED, "spec.evaluation": {"compareWithFull": True}},
        "spec",
        NO_SAME_BUDGET,
    ),
    of_job(
        "a comparison on two GPUs",
        {"spec.resources": {"gpusPerNode": 2}, "spec.evaluation": {"compareWithFull": True}},
        "spec",
        COMPARED_ALONE,
    ),
    of_job(
        "a dataset for a general text",
        {"spec.evaluation": {"forgetting": {"uri": "hf://a/b"}}},
        "spec.evaluation.forgetting.uri",
        "should match",
        "is a file",
    ),
]

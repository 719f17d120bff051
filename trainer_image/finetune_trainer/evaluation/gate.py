"""Decide by ``spec.evaluation.gate`` and the held-out metrics whether an adapter is published.

It does not know torch.
"""

from finetune_api.finetunejob import EvaluationStatus
from finetune_api.gate import Gate
from finetune_api.improvement import describe_improvement, improvement_percent
from finetune_api.manifest import MANIFEST_NAME
from finetune_api.uris import StorageUri
from finetune_artifacts.objects import delete_objects
from finetune_artifacts.storage import Storage

FIELD = "spec.evaluation.gate"


def apply_gate(gate: Gate | None, evaluation: EvaluationStatus) -> tuple[EvaluationStatus, str | None]:
    """Compare the evaluation with the gate's limits.

    Returns:
        The evaluation with ``passed`` set, and the reason of a refusal: measured values and limits. Without a gate the
        evaluation is unchanged; without a refusal the reason is None.
    """
    if gate is None:
        return evaluation, None
    base, value = evaluation.base_loss, evaluation.loss
    if gate.metric == "perplexity" and evaluation.base_perplexity is not None and evaluation.perplexity is not None:
        base, value = evaluation.base_perplexity, evaluation.perplexity
    reasons = []
    if gate.max is not None and not value <= gate.max:
        reasons.append(f"is {value:.6g}, the gate allows at most {gate.max:g}")
    required, improvement = gate.min_improvement_percent, improvement_percent(base, value)
    if required is not None and not improvement >= required:
        change = f"{describe_improvement(improvement, 4)} than the base's {base:.6g}"
        reasons.append(f"is {change}, the gate requires at least {required:g} % lower")
    refusal = f"the held-out {gate.metric} {', and '.join(reasons)}" if reasons else None
    return evaluation.model_copy(update={"passed": refusal is None}), refusal


def delete_rejected(output: Storage, uri: StorageUri) -> None:
    """Delete the rejected adapter of an earlier attempt or job, its manifest first.

    Without a manifest the remaining files do not look like a complete adapter.
    """
    manifest = uri.child(MANIFEST_NAME)
    delete_objects(output, sorted((item.uri for item in output.list_objects(uri)), key=lambda item: item != manifest))

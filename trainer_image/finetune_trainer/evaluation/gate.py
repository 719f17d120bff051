"""Whether a verified adapter may be published: the held-out numbers against the limits of ``spec.evaluation.gate``. Knows no torch."""

from finetune_api.finetunejob import EvaluationStatus
from finetune_api.gate import Gate
from finetune_api.manifest import MANIFEST_NAME
from finetune_api.uris import S3Uri
from finetune_artifacts.objects import delete_objects, list_objects
from finetune_artifacts.store import Place

FIELD = "spec.evaluation.gate"


def apply_gate(gate: Gate | None, evaluation: EvaluationStatus) -> tuple[EvaluationStatus, str | None]:
    """The evaluation with its verdict and, where it does not pass, what was found and what was wanted."""
    if gate is None:
        return evaluation, None
    base, found = evaluation.base_loss, evaluation.loss
    if gate.metric == "perplexity" and evaluation.base_perplexity is not None and evaluation.perplexity is not None:
        base, found = evaluation.base_perplexity, evaluation.perplexity
    short = []
    if gate.max is not None and not found <= gate.max:
        short.append(f"is {found:.6g}, wanted at most {gate.max:g}")
    wanted, improvement = gate.min_improvement_percent, 100 * (base - found) / base if base else 0.0
    if wanted is not None and not improvement >= wanted:
        change = f"{abs(improvement):.4g} % {'lower' if improvement >= 0 else 'higher'} than the base's {base:.6g}"
        short.append(f"is {change}, wanted at least {wanted:g} % lower")
    refusal = f"the held-out {gate.metric} {', and '.join(short)}" if short else None
    return evaluation.model_copy(update={"passed": refusal is None}), refusal


def make_room(output: Place, place: S3Uri) -> None:
    """Remove the rejected adapter of an earlier attempt or job, its manifest first: from then on nobody takes the rest for a whole one."""
    manifest = place.child(MANIFEST_NAME)
    delete_objects(output, sorted((item.uri for item in list_objects(output, place)), key=lambda uri: uri != manifest))

"""Load the saved adapter onto a fresh base, as an engine would, and prove that it is the trained one."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file

from finetune_api.finetunejob import EvaluationStatus
from finetune_api.improvement import describe_improvement, improvement_percent
from finetune_api.manifest import GOLDEN_NAME, GoldenSample, GoldenSamples
from finetune_api.methods import Method
from finetune_api.reasons import Reason
from finetune_trainer.data.dataset import Example
from finetune_trainer.evaluation import effect, forgetting
from finetune_trainer.evaluation.likelihood import compute_logits, token_logprobs
from finetune_trainer.evaluation.measures import HeldOutMetrics
from finetune_trainer.evaluation.scoring import Scoring
from finetune_trainer.methods import adapted_model, bottleneck
from finetune_trainer.models import saving, streaming
from finetune_trainer.models.eval_mode import evaluation_mode
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.logs import log
from finetune_trainer.runtime.phase_clock import CLOCK

CANDIDATES, SAMPLES, SAMPLE_TOKENS = 12, 4, 48
"""How many texts are compared, how many become golden samples, and the length of each in tokens."""
EXACT_TOLERANCE = 1e-3
"""Largest allowed difference of a logit if base and data type are the same."""


@dataclass(frozen=True)
class TrainedAnswers:
    """The trained model's answers to each candidate text.

    ``base`` are the log-probabilities (or the score) of the model with its adapter turned off; None for a method that
    cannot be turned off. ``layout`` tells how the fresh base differs.
    """

    token_ids: list[list[int]]
    logits: list[torch.Tensor]
    base: list[list[float]] | None
    layout: effect.Layout


@dataclass(frozen=True)
class Evaluation:
    """A model's metrics on the held-out rows, its loss on the general text, and its answers to the sample prompts."""

    metrics: HeldOutMetrics
    general_loss: float | None
    sample_answers: list[str]


@dataclass(frozen=True)
class Verification:
    """The result of the verification on a fresh base.

    ``golden`` is None for a model that scores texts; ``differences`` are the measured distances, by name;
    ``sample_answers`` are the answers of base and adapter to the sample prompts.
    """

    evaluation: EvaluationStatus
    golden: GoldenSamples | None
    differences: dict[str, float]
    warnings: list[str]
    sample_answers: tuple[list[str], list[str]]


def record_answers(
    model: Any, method: Method, held_out: Sequence[Example], layout: effect.Layout, tokens: int
) -> TrainedAnswers:
    """Record the trained model's answers to the first held-out sequences, with the adapter and without it.

    Args:
        model: The trained model.
        method: Its method.
        held_out: Held-out sequences.
        layout: How the fresh base will differ.
        tokens: Maximum number of tokens in a batch.
    """
    texts = [example.input_ids[:SAMPLE_TOKENS] for example in held_out[:CANDIDATES] if len(example.input_ids) > 1]
    logits, base = compute_logits(model, texts, tokens), None
    if adapted_model.can_be_disabled(model, method):
        with adapted_model.disable_adapter(model):
            base = list_answers(compute_logits(model, texts, tokens), texts)
    return TrainedAnswers(texts, logits, base, layout)


def save_weights(model: Any, directory: Path, dtype: torch.dtype) -> None:
    """Save the trained weights, and check that the files hold them bit for bit.

    Args:
        model: A model with an adapter, or a model of which all weights were trained.
        directory: Receives the files.
        dtype: Data type in which a whole model is saved.

    Raises:
        Failure: VERIFICATION_FAILED if the files differ from the model, LOSS_DIVERGED for a weight that is not finite.
    """
    if isinstance(model, PeftModel):
        with evaluation_mode(model):
            model.save_pretrained(str(directory), safe_serialization=True)
            (directory / "README.md").unlink(missing_ok=True)
            check_saved(get_peft_model_state_dict(model), directory)
    elif bottleneck.has_bottleneck(model):
        bottleneck.save(model, directory)
        check_saved(bottleneck.adapter_state_dict(model), directory)
    else:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        check_finite(model.named_parameters())
        saving.save_model(model, directory)
        saving.check_saved_model(model, directory)


def check_saved(trained: Mapping[str, torch.Tensor], directory: Path) -> None:
    """Check that the saved weights of an adapter equal those in memory, bit for bit.

    Raises:
        Failure: VERIFICATION_FAILED if they differ, LOSS_DIVERGED for a weight that is not finite.
    """
    saved: dict[str, torch.Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        saved |= load_file(path)
    if len(saved) != len(trained) or not trained:
        raise _mismatch(f"{len(saved)} tensors were saved, {len(trained)} were trained")
    check_finite(trained.items())
    for key, weight in trained.items():
        if key not in saved or not torch.equal(saved[key], weight.detach().cpu()):
            raise _mismatch(f"the saved {key} differs from the trained one")


def check_finite(weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Check that all weights are finite numbers. Raises Failure: LOSS_DIVERGED."""
    for name, weight in weights:
        if not torch.isfinite(weight).all():
            raise Failure(
                Reason.LOSS_DIVERGED,
                f"{name} is not finite: lower spec.training.learningRate",
                "spec.training.learningRate",
            )


def load_tuned(base: Any, directory: Path, load_base: Callable[[Path], Any]) -> Any:
    """Load what ``save_weights`` wrote onto the base; a whole model replaces the base."""
    if not (directory / "adapter_config.json").is_file():
        return load_base(directory)
    kind = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))["peft_type"]
    if kind == bottleneck.TYPE:
        return bottleneck.load(base, directory)
    return PeftModel.from_pretrained(base, str(directory), is_trainable=False)


def verify(
    scoring: Scoring,
    *,
    trained: TrainedAnswers,
    held_out: int,
    generate_samples: Callable[[Any], list[str]],
    tokens: int,
    streamed: bool,
) -> Verification:
    """Load base and adapter afresh, compare them with the trained model, and evaluate both.

    Args:
        scoring: Scores base and adapter.
        trained: The answers that the trained model gave.
        held_out: Number of held-out sequences.
        generate_samples: Returns a model's answers to the sample prompts.
        tokens: Maximum number of tokens in a batch.
        streamed: Whether the models are in main memory, and their layers are to be copied to the GPU when they run.

    Raises:
        Failure: VERIFICATION_FAILED if the loaded adapter is not the trained one or changes no answer of the base.
    """
    stream = streaming.stream_layers if streamed else lambda model: model
    if scoring.reference is not None:
        with CLOCK.spend("evaluate"):
            scoring.measure(stream(load_reference(scoring, scoring.reference)))
    base = scoring.load_base(scoring.base_directory)
    with CLOCK.spend("hash"):
        scores_file = scoring.base_scores.find_file(base)
    base = stream(base)
    base_answers = list_answers(compute_logits(base, trained.token_ids, tokens), trained.token_ids)
    with CLOCK.spend("evaluate"):
        base_evaluation = Evaluation(*scoring.score_base(base, scores_file), generate_samples(base))
    base = streaming.stop_streaming(base) if streamed else base
    tuned = stream(load_tuned(base, scoring.adapter, scoring.load_base))
    logits = compute_logits(tuned, trained.token_ids, tokens)
    adapter_answers = list_answers(logits, trained.token_ids)
    differences, warnings = compare_answers(trained, logits, base_answers, adapter_answers)
    with CLOCK.spend("evaluate"):
        tuned_evaluation = Evaluation(*scoring.score_tuned(tuned), generate_samples(tuned))
    sequences = len(scoring.forgetting_text)
    evaluation = compare_evaluations(base_evaluation, tuned_evaluation, rows=held_out, sequences=sequences)
    base_loss, loss = base_evaluation.metrics.loss, tuned_evaluation.metrics.loss
    if loss >= base_loss:
        warnings.append(
            f"the adapter is no better than the base on the held-out rows: loss {loss:.4f} against {base_loss:.4f}"
        )
    return Verification(
        evaluation,
        choose_golden(trained.token_ids, base_answers, adapter_answers),
        differences,
        warnings,
        (base_evaluation.sample_answers, tuned_evaluation.sample_answers),
    )


def score_share(scoring: Scoring) -> None:
    """Score a worker's share of what ``verify`` scores in the main process: the same collective calls."""
    if scoring.reference is not None:
        scoring.measure(load_reference(scoring, scoring.reference))
    base = scoring.load_base(scoring.base_directory)
    scoring.score_base(base, None)
    scoring.score_tuned(load_tuned(base, scoring.adapter, scoring.load_base))


def load_reference(scoring: Scoring, reference: Path) -> Any:
    """Load the reference adapter onto a base of its own."""
    return load_tuned(scoring.load_base(scoring.base_directory), reference, scoring.load_base)


def compare_evaluations(base: Evaluation, tuned: Evaluation, *, rows: int, sequences: int) -> EvaluationStatus:
    """Compare base and adapter on the held-out rows and on the general text.

    Args:
        base: The evaluated base.
        tuned: The evaluated adapter.
        rows: Number of held-out rows.
        sequences: Number of sequences of the general text.

    Raises:
        Failure: VERIFICATION_FAILED if a loss is not finite.
    """
    base_loss, loss = base.metrics.loss, tuned.metrics.loss
    if not math.isfinite(loss) or not math.isfinite(base_loss):
        raise _mismatch("its logits are not finite")
    improvement = round(improvement_percent(base_loss, loss), 2)
    log.info("held-out loss: base %.4f, adapter %.4f (%s)", base_loss, loss, describe_improvement(improvement))
    return EvaluationStatus(
        base_loss=round(base_loss, 5),
        loss=round(loss, 5),
        improvement_percent=improvement,
        rows=rows,
        base_perplexity=_round(base.metrics.perplexity),
        perplexity=_round(tuned.metrics.perplexity),
        base_accuracy=_round(base.metrics.accuracy),
        accuracy=_round(tuned.metrics.accuracy),
        forgetting=forgetting.compare_losses(base.general_loss, tuned.general_loss, sequences),
    )


def choose_golden(
    texts: list[list[int]], base_answers: list[list[float]], adapter_answers: list[list[float]]
) -> GoldenSamples | None:
    """Choose the texts on which the adapter changes most; None for a model that scores texts."""
    answers = sorted(
        zip(texts, base_answers, adapter_answers, strict=True),
        key=lambda answer: -_mean_difference(answer[1], answer[2]),
    )
    samples = [
        GoldenSample(token_ids=ids, base_logprobs=off, adapter_logprobs=on)
        for ids, off, on in answers[:SAMPLES]
        if len(off) == len(ids) - 1
    ]
    return GoldenSamples(samples=samples) if samples else None


def compare_answers(
    trained: TrainedAnswers,
    logits: list[torch.Tensor],
    base_answers: list[list[float]],
    adapter_answers: list[list[float]],
) -> tuple[dict[str, float], list[str]]:
    """Compare the loaded adapter's answers with the trained model's, and its effect with the trained effect.

    Args:
        trained: The trained model's answers.
        logits: Logits of the loaded adapter for each text.
        base_answers: Log-probabilities, or scores, of the fresh base.
        adapter_answers: Those of the loaded adapter.

    Returns:
        The measured distances by name, and warnings.

    Raises:
        Failure: VERIFICATION_FAILED if it is another adapter, or one that changes nothing.
    """
    expected = list_answers(trained.logits, trained.token_ids)
    logit_difference = largest_difference(logits, trained.logits)
    comparison = effect.compare_effects(
        subtract(expected, trained.base if trained.base is not None else base_answers),
        effects := subtract(adapter_answers, base_answers),
    )
    differences = {
        "maxLogitDifference": logit_difference,
        "meanLogprobDifference": max(map(_mean_difference, adapter_answers, expected)),
        "meanAdapterEffect": max(map(_mean_difference, adapter_answers, base_answers)),
        "shareOfTrainedEffect": comparison.share,
    }
    log.info(
        "reloaded on a fresh base: %.1f %% of the trained effect is there (standard error %.1f %%), largest logit "
        "difference %.2g",
        100 * comparison.share,
        100 * comparison.error,
        logit_difference,
    )
    if not all(map(math.isfinite, [*effects, logit_difference, comparison.share, comparison.error])):
        raise _mismatch("its logits are not finite")
    if trained.layout == "exact" and logit_difference > EXACT_TOLERANCE:
        raise _mismatch(
            f"its logits differ by {logit_difference:.3g} from the trained model's, allowed are {EXACT_TOLERANCE}"
        )
    if not any(effects):
        raise Failure(
            Reason.VERIFICATION_FAILED,
            "the adapter changes nothing: base and adapter give the same log-probabilities for all "
            f"{len(adapter_answers)} held-out texts. Raise it, or train for more steps",
            "spec.training.learningRate",
        )
    if mismatch := effect.find_mismatch(comparison, trained.layout):
        raise _mismatch(mismatch)
    if effect.is_visible(comparison, trained.layout):
        return differences, []
    return differences, [
        f"the adapter changes log-probabilities by {comparison.trained:.2g} nats: that is too little to compare the "
        "loaded adapter with the trained one by its answers. Raise spec.training.learningRate, or train for more steps"
    ]


def list_answers(logits: list[torch.Tensor], texts: list[list[int]]) -> list[list[float]]:
    """Return the log-probabilities of each text's tokens or, of a model that scores texts, its score."""
    return [
        token_logprobs(rows, ids) if rows.dim() == 2 else [float(score) for score in rows]
        for rows, ids in zip(logits, texts, strict=True)
    ]


def subtract(values: list[list[float]], others: list[list[float]]) -> list[float]:
    """Return the differences of all values, in one flat list."""
    return [a - b for row, other in zip(values, others, strict=True) for a, b in zip(row, other, strict=True)]


def largest_difference(logits: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    """Return the largest absolute difference of a logit."""
    return max((float((a - b).abs().max()) for a, b in zip(logits, others, strict=True)), default=0.0)


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


def write_golden(golden: GoldenSamples, adapter: Path) -> None:
    """Write ``golden.json`` into the adapter's directory."""
    (adapter / GOLDEN_NAME).write_text(json.dumps(golden.to_json()), encoding="utf-8")


def _mismatch(difference: str) -> Failure:
    return Failure(
        Reason.VERIFICATION_FAILED,
        f"the saved adapter, loaded onto a fresh base, is not the trained one: {difference}",
    )


def _mean_difference(actual: list[float], expected: list[float]) -> float:
    return sum(abs(a - b) for a, b in zip(actual, expected, strict=True)) / len(actual)

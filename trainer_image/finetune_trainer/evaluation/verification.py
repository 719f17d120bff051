"""Load the saved adapter onto a fresh base, as an engine would, and prove that it is the trained one."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file

from finetune_api.finetunejob import EvaluationStatus
from finetune_api.improvement import improvement_percent
from finetune_api.manifest import GOLDEN_NAME, GoldenSample, GoldenSamples
from finetune_api.reasons import Reason
from finetune_trainer.data.dataset import Example
from finetune_trainer.evaluation import forgetting
from finetune_trainer.evaluation.likelihood import compute_logits, token_logprobs
from finetune_trainer.evaluation.measures import Measure
from finetune_trainer.methods import bottleneck
from finetune_trainer.models.eval_mode import evaluation_mode
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.logs import log
from finetune_trainer.runtime.phase_clock import CLOCK

CANDIDATES, SAMPLES, SAMPLE_TOKENS = 12, 4, 48
EXACT_TOLERANCE = 1e-3
"""Largest allowed difference of a logit if base and data type are the same."""
LAYOUT_TOLERANCE = 0.25
"""Largest allowed mean difference, in nats per token, if the base was held in 4 bits or bf16 during training."""


@dataclass(frozen=True)
class TrainedAnswers:
    """The trained model's logits of each candidate sequence.

    ``exact`` says that the fresh base has the same weights in the same data type, so that the logits must agree.
    """

    token_ids: list[list[int]]
    logits: list[torch.Tensor]
    exact: bool


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


def record_answers(model: Any, held_out: Sequence[Example], *, exact: bool) -> TrainedAnswers:
    """Record the trained model's logits of the first held-out sequences.

    Args:
        model: The trained model.
        held_out: Held-out sequences.
        exact: Whether the fresh base will have the same weights in the same data type.
    """
    texts = [example.input_ids[:SAMPLE_TOKENS] for example in held_out[:CANDIDATES] if len(example.input_ids) > 1]
    return TrainedAnswers(texts, [compute_logits(model, ids) for ids in texts], exact)


def save_weights(model: Any, directory: Path, dtype: torch.dtype) -> None:
    """Save the trained weights, and check that the files hold them bit for bit.

    Args:
        model: A model with an adapter, or a model of which all weights were trained.
        directory: Receives the files.
        dtype: Data type in which a whole model is saved.

    Raises:
        Failure: VerificationFailed if the files differ from the model, LossDiverged for a weight that is not finite.
    """
    if isinstance(model, PeftModel):
        with evaluation_mode(model):
            model.save_pretrained(str(directory), safe_serialization=True)
            (directory / "README.md").unlink(missing_ok=True)
            check_saved(get_peft_model_state_dict(model), directory)
    elif bottleneck.has_bottleneck(model):
        bottleneck.save(model, directory)
        check_saved(bottleneck.adapter_weights(model), directory)
    else:
        model.to(dtype)
        model.save_pretrained(str(directory), safe_serialization=True)
        tied = set(model.state_dict()) - {name for name, _ in model.named_parameters()}
        check_saved({name: value for name, value in model.state_dict().items() if name not in tied}, directory)


def check_saved(trained: Mapping[str, torch.Tensor], directory: Path) -> None:
    """Check that the saved weights equal those in memory, bit for bit.

    Raises:
        Failure: VerificationFailed if they differ, LossDiverged for a weight that is not finite.
    """
    saved: dict[str, torch.Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        saved |= load_file(path)
    if len(saved) != len(trained) or not trained:
        raise _mismatch(f"{len(saved)} tensors were saved, {len(trained)} were trained")
    for key, weight in trained.items():
        if key not in saved or not torch.equal(saved[key], weight.detach().cpu()):
            raise _mismatch(f"the saved {key} differs from the trained one")
        if not torch.isfinite(saved[key]).all():
            raise Failure(
                Reason.LOSS_DIVERGED,
                f"{key} is not finite: lower spec.training.learningRate",
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
    base_directory: Path,
    adapter: Path,
    *,
    trained: TrainedAnswers,
    measure: Measure,
    held_out: int,
    general: list[Example],
    load_base: Callable[[Path], Any],
    ask: Callable[[Any], list[str]],
) -> Verification:
    """Load base and adapter afresh, compare them with the trained model, and evaluate both.

    Args:
        base_directory: The base model.
        adapter: Directory of the saved adapter.
        trained: The logits that the trained model gave.
        measure: Measures a model on the held-out rows; the base is its reference.
        held_out: Number of held-out sequences.
        general: Sequences of the general text; empty if forgetting is not measured.
        load_base: Loads a model from a directory.
        ask: Returns a model's answers to the sample prompts.

    Raises:
        Failure: VerificationFailed, if the loaded adapter is not the trained one or changes no answer of the base.
    """
    base = load_base(base_directory)
    base_answers = [_logprobs_or_scores(compute_logits(base, ids), ids) for ids in trained.token_ids]
    with CLOCK.spend("evaluate"):
        base_measured, base_general, base_texts = measure(base), forgetting.measure_loss(base, general), ask(base)
    tuned = load_tuned(base, adapter, load_base)
    answers, logit_difference, logprob_difference = [], 0.0, 0.0
    for ids, expected, before in zip(trained.token_ids, trained.logits, base_answers, strict=True):
        logits = compute_logits(tuned, ids)
        after = _logprobs_or_scores(logits, ids)
        logit_difference = max(logit_difference, float((logits - expected).abs().max()))
        logprob_difference = max(logprob_difference, _mean_difference(after, _logprobs_or_scores(expected, ids)))
        answers.append((ids, before, after))
    with CLOCK.spend("evaluate"):
        measured, tuned_general, tuned_texts = measure(tuned), forgetting.measure_loss(tuned, general), ask(tuned)
    base_loss, loss = base_measured.loss, measured.loss
    _refuse_mismatch(trained.exact, logit_difference, logprob_difference, [loss, base_loss])
    answers.sort(key=lambda answer: _mean_difference(answer[1], answer[2]), reverse=True)
    effect = _mean_difference(answers[0][1], answers[0][2])
    _refuse_no_effect(effect, len(answers))
    samples = [
        GoldenSample(token_ids=ids, base_logprobs=before, adapter_logprobs=after)
        for ids, before, after in answers[:SAMPLES]
        if len(before) == len(ids) - 1
    ]
    evaluation = EvaluationStatus(
        base_loss=round(base_loss, 5),
        loss=round(loss, 5),
        improvement_percent=round(improvement_percent(base_loss, loss), 2),
        rows=held_out,
        base_perplexity=_rounded(base_measured.perplexity),
        perplexity=_rounded(measured.perplexity),
        base_accuracy=_rounded(base_measured.accuracy),
        accuracy=_rounded(measured.accuracy),
        forgetting=forgetting.compare_losses(base_general, tuned_general, len(general)),
    )
    log.info("held-out loss: base %.4f, adapter %.4f (%.1f %% lower)", base_loss, loss, evaluation.improvement_percent)
    warnings = (
        []
        if loss < base_loss
        else [f"the adapter is no better than the base on the held-out rows: loss {loss:.4f} against {base_loss:.4f}"]
    )
    return Verification(
        evaluation,
        GoldenSamples(samples=samples) if samples else None,
        {
            "maxLogitDifference": logit_difference,
            "meanLogprobDifference": logprob_difference,
            "meanAdapterEffect": effect,
        },
        warnings,
        (base_texts, tuned_texts),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


def write_golden(golden: GoldenSamples, adapter: Path) -> None:
    """Write ``golden.json`` into the adapter's directory."""
    (adapter / GOLDEN_NAME).write_text(json.dumps(golden.to_json()), encoding="utf-8")


def _refuse_mismatch(exact: bool, logit_difference: float, logprob_difference: float, losses: list[float]) -> None:
    log.info(
        "reloaded on a fresh base: largest logit difference %.2g, mean log-probability difference %.2g",
        logit_difference,
        logprob_difference,
    )
    if not all(math.isfinite(value) for value in (*losses, logit_difference, logprob_difference)):
        raise _mismatch("its logits are not finite")
    if exact and logit_difference > EXACT_TOLERANCE:
        raise _mismatch(
            f"its logits differ by {logit_difference:.3g} from the trained model's, allowed are {EXACT_TOLERANCE}"
        )
    if logprob_difference > LAYOUT_TOLERANCE:
        raise _mismatch(
            f"its log-probabilities differ by {logprob_difference:.3g} nats from the trained model's, "
            f"allowed are {LAYOUT_TOLERANCE}"
        )


def _refuse_no_effect(effect: float, texts: int) -> None:
    if effect == 0:
        raise Failure(
            Reason.VERIFICATION_FAILED,
            f"the adapter changes nothing: base and adapter give the same log-probabilities for all {texts} held-out "
            "texts. Raise it, or train for more steps",
            "spec.training.learningRate",
        )


def _mismatch(what: str) -> Failure:
    return Failure(
        Reason.VERIFICATION_FAILED,
        f"the saved adapter, loaded onto a fresh base, is not the trained one: {what}",
    )


def _logprobs_or_scores(logits: torch.Tensor, ids: list[int]) -> list[float]:
    """Return the log-probabilities of a text's tokens or, of a model that scores texts, its score."""
    return token_logprobs(logits, ids) if logits.dim() == 2 else [float(score) for score in logits]


def _mean_difference(actual: list[float], expected: list[float]) -> float:
    return sum(abs(a - b) for a, b in zip(actual, expected, strict=True)) / len(actual)

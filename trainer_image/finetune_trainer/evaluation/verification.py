"""The finished adapter is loaded back onto a fresh base, as an inference engine would, and shown to be the one that was trained."""

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
from finetune_api.manifest import GOLDEN_NAME, GoldenSample, GoldenSamples
from finetune_api.reasons import Reason
from finetune_trainer.data.dataset import Example
from finetune_trainer.evaluation import forgetting
from finetune_trainer.evaluation.likelihood import logits_of, logprobs
from finetune_trainer.evaluation.measures import Measure
from finetune_trainer.methods import bottleneck
from finetune_trainer.models.eval_mode import evaluation_mode
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.logs import log

CANDIDATES, SAMPLES, SAMPLE_TOKENS = 12, 4, 48
EXACT_TOLERANCE = 1e-3
"""Largest difference of a logit when nothing but the loading lies between: same data type, same base."""
LAYOUT_TOLERANCE = 0.25
"""Largest mean difference, in nats per token, when the base was trained on in 4 bits or in bf16."""


@dataclass(frozen=True)
class TrainedAnswers:
    """What the model answered at the end of the training: logits for each candidate's tokens."""

    token_ids: list[list[int]]
    logits: list[torch.Tensor]
    exact: bool


@dataclass(frozen=True)
class Verification:
    """What was measured on the fresh base."""

    evaluation: EvaluationStatus
    golden: GoldenSamples | None
    """None for a model that scores texts: it writes none."""
    measured: dict[str, float]
    warnings: list[str]
    answers: tuple[list[str], list[str]]
    """What base and adapter said to the prompts that they were asked."""


def record_answers(model: Any, held_out: Sequence[Example], *, exact: bool) -> TrainedAnswers:
    """The logits of the model as it was trained. ``exact``: the fresh base will have the same weights in the same data type."""
    texts = [example.input_ids[:SAMPLE_TOKENS] for example in held_out[:CANDIDATES] if len(example.input_ids) > 1]
    return TrainedAnswers(texts, [logits_of(model, ids) for ids in texts], exact)


def save(model: Any, directory: Path, dtype: torch.dtype) -> None:
    """Write what was trained, and see that the files hold it bit for bit: an adapter, or a whole model in ``dtype``.

    Raises Failure(VERIFICATION_FAILED), and Failure(LOSS_DIVERGED) for a weight that is no finite number.
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
    """Raise Failure(VERIFICATION_FAILED) if the saved weights are not, bit for bit, those in memory, or not finite."""
    saved: dict[str, torch.Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        saved |= load_file(path)
    if len(saved) != len(trained) or not trained:
        raise _failed(f"{len(saved)} tensors were saved, {len(trained)} were trained")
    for key, weight in trained.items():
        if key not in saved or not torch.equal(saved[key], weight.detach().cpu()):
            raise _failed(f"the saved {key} is not what was trained")
        if not torch.isfinite(saved[key]).all():
            raise Failure(
                Reason.LOSS_DIVERGED,
                f"{key} is not finite: lower spec.training.learningRate",
                "spec.training.learningRate",
            )


def load_tuned(base: Any, directory: Path, load_base: Callable[[Path], Any]) -> Any:
    """What ``save`` wrote, on the given base; a model that was trained whole takes the base's place."""
    if not (directory / "adapter_config.json").is_file():
        return load_base(directory)
    kind = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))["peft_type"]
    if kind == bottleneck.TYPE:
        return bottleneck.load(base, directory)
    return PeftModel.from_pretrained(base, str(directory), is_trainable=False)


def verify(
    base_directory: Path,
    adapter: Path,
    trained: TrainedAnswers,
    measure: Measure,
    held_out: int,
    general: list[Example],
    load_base: Callable[[Path], Any],
    ask: Callable[[Any], list[str]],
) -> Verification:
    """Load base and adapter afresh, compare with what was trained, evaluate both on the ``held_out`` rows and the ``general`` text, and choose golden samples.

    ``ask`` has each of the two answer some prompts. Raises Failure(VERIFICATION_FAILED).
    """
    base = load_base(base_directory)
    base_answers = [_answers(logits_of(base, ids), ids) for ids in trained.token_ids]
    base_measured, base_general = measure(base), forgetting.loss(base, general)
    base_texts = ask(base)
    tuned = load_tuned(base, adapter, load_base)
    answers, logit_difference, logprob_difference = [], 0.0, 0.0
    for ids, expected, before in zip(trained.token_ids, trained.logits, base_answers, strict=True):
        logits = logits_of(tuned, ids)
        after = _answers(logits, ids)
        logit_difference = max(logit_difference, float((logits - expected).abs().max()))
        logprob_difference = max(logprob_difference, _mean_difference(after, _answers(expected, ids)))
        answers.append((ids, before, after))
    measured = measure(tuned)
    base_loss, loss = base_measured.loss, measured.loss
    _judge(trained.exact, logit_difference, logprob_difference, [loss, base_loss])
    answers.sort(key=lambda answer: _mean_difference(answer[1], answer[2]), reverse=True)
    effect = _mean_difference(answers[0][1], answers[0][2])
    samples = [
        GoldenSample(token_ids=ids, base_logprobs=before, adapter_logprobs=after)
        for ids, before, after in answers[:SAMPLES]
        if len(before) == len(ids) - 1
    ]
    evaluation = EvaluationStatus(
        base_loss=round(base_loss, 5),
        loss=round(loss, 5),
        improvement_percent=round(100 * (base_loss - loss) / base_loss, 2) if base_loss else 0.0,
        rows=held_out,
        base_perplexity=_rounded(base_measured.perplexity),
        perplexity=_rounded(measured.perplexity),
        base_accuracy=_rounded(base_measured.accuracy),
        accuracy=_rounded(measured.accuracy),
        forgetting=forgetting.compare(base_general, forgetting.loss(tuned, general), len(general)),
    )
    log.info("held-out loss: base %.4f, adapter %.4f (%.1f %% lower)", base_loss, loss, evaluation.improvement_percent)
    warnings = (
        []
        if loss < base_loss
        else [f"the adapter is no better than the base on the held-out rows: loss {loss:.4f} against {base_loss:.4f}"]
    )
    if effect == 0:
        warnings.append("the adapter changes no answer: the learning rate may be too low")
    return Verification(
        evaluation,
        GoldenSamples(samples=samples) if samples else None,
        {
            "maxLogitDifference": logit_difference,
            "meanLogprobDifference": logprob_difference,
            "meanAdapterEffect": effect,
        },
        warnings,
        (base_texts, ask(tuned)),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


def write_golden(golden: GoldenSamples, adapter: Path) -> None:
    """``golden.json`` beside the adapter."""
    (adapter / GOLDEN_NAME).write_text(json.dumps(golden.to_json()), encoding="utf-8")


def _judge(exact: bool, logit_difference: float, logprob_difference: float, losses: list[float]) -> None:
    log.info(
        "reloaded on a fresh base: largest logit difference %.2g, mean log-probability difference %.2g",
        logit_difference,
        logprob_difference,
    )
    if not all(math.isfinite(value) for value in (*losses, logit_difference, logprob_difference)):
        raise _failed("its answers are not finite numbers")
    if exact and logit_difference > EXACT_TOLERANCE:
        raise _failed(
            f"its logits differ by {logit_difference:.3g} from the trained model's, expected at most {EXACT_TOLERANCE}"
        )
    if logprob_difference > LAYOUT_TOLERANCE:
        raise _failed(
            f"its log-probabilities differ by {logprob_difference:.3g} nats from the trained model's, expected at most {LAYOUT_TOLERANCE}"
        )


def _failed(what: str) -> Failure:
    return Failure(
        Reason.VERIFICATION_FAILED,
        f"the adapter, loaded back onto a fresh base, is not the one that was trained: {what}",
    )


def _answers(logits: torch.Tensor, ids: list[int]) -> list[float]:
    """Log-probabilities of a text's tokens; of a model that scores texts, its score."""
    return logprobs(logits, ids) if logits.dim() == 2 else [float(score) for score in logits]


def _mean_difference(some: list[float], others: list[float]) -> float:
    return sum(abs(a - b) for a, b in zip(some, others, strict=True)) / len(some)

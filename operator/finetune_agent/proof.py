"""Judge from an engine's log-probabilities whether the right base and the right adapter answer. Pure.

A status of 200 is no proof: an engine may accept an adapter, apply none of it, and let the base answer under its name.
"""

import math
from dataclasses import dataclass

from finetune_api.manifest import GoldenSample, GoldenSamples
from finetune_api.reasons import Reason

MIN_VISIBLE_EFFECT = 0.01
"""Mean effect of an adapter, in nats per token, below which the engine's rounding hides it."""
MAX_DEVIATION = 0.15
"""Largest distance from 1 of the measured share of the trained effect. Rounding changes it by a few percent."""
MIN_EFFECT = 0.5
"""Share of the trained effect that must show, however large the standard error is."""
STANDARD_ERRORS = 2.0
"""How many standard errors of the share are allowed on top of ``MAX_DEVIATION``."""
QUESTIONS_PER_SAMPLE = 8
"""Questions about one golden sample. Each is one token: a proof must be small next to the clients' requests."""


@dataclass(frozen=True)
class Question:
    """Asks how probable a token is after a prompt.

    Attributes:
        prompt: Token ids.
        token: Id of the token that follows.
        base: Log-probability under the trainer's base.
        adapter: Log-probability under the trainer's adapter.
    """

    prompt: tuple[int, ...]
    token: int
    base: float
    adapter: float


@dataclass(frozen=True)
class Verdict:
    """The result of a comparison: ``reason`` is None if it is proven; ``message`` names the numbers."""

    reason: Reason | None
    message: str


@dataclass(frozen=True)
class Effect:
    """The share of the trained effect that shows in the engine's answers, and its standard error."""

    share: float
    error: float

    @property
    def allowed_deviation(self) -> float:
        """Return how far the share may be from the expected one."""
        return MAX_DEVIATION + STANDARD_ERRORS * self.error

    @property
    def is_too_low(self) -> bool:
        """Return whether too little of the effect shows."""
        return self.share < max(MIN_EFFECT, 1 - self.allowed_deviation)

    @property
    def is_too_high(self) -> bool:
        """Return whether more than the trained effect shows."""
        return self.share > 1 + self.allowed_deviation

    def __str__(self) -> str:
        """Return the beginning of a message that also names other numbers."""
        return f"{self.share:.0%} of the trained effect is there (standard error {self.error:.0%}); "


def mean_difference(logprobs: list[float], expected: list[float]) -> float:
    """Return the mean absolute difference, in nats per token. Raises ValueError if the lengths differ."""
    return sum(abs(a - b) for a, b in zip(logprobs, expected, strict=True)) / len(expected)


def choose_questions(golden: GoldenSamples) -> list[Question]:
    """Return, for each sample, the tokens at which the adapter differs most from its base."""
    return [question for sample in golden.samples for question in _choose_from_sample(sample)]


def _choose_from_sample(sample: GoldenSample) -> list[Question]:
    questions = [
        Question(tuple(sample.token_ids[: position + 1]), token, base, adapter)
        for position, (token, base, adapter) in enumerate(
            zip(sample.token_ids[1:], sample.base_logprobs, sample.adapter_logprobs, strict=True)
        )
    ]
    return sorted(questions, key=lambda question: -abs(question.adapter - question.base))[:QUESTIONS_PER_SAMPLE]


def judge_base(logprobs: list[float], questions: list[Question], tolerance: float) -> Verdict:
    """Compare the engine's base with the base that the adapter was trained on.

    Args:
        logprobs: The engine's log-probability for each question.
        questions: The questions.
        tolerance: Largest mean difference, in nats per token.
    """
    difference = mean_difference(logprobs, [question.base for question in questions])
    if difference <= tolerance:
        return Verdict(None, f"the base differs by {difference:.4f} nats per token")
    return Verdict(
        Reason.BASE_MODEL_MISMATCH,
        "the engine's base model is not the one that the adapter was trained on: "
        f"its log-probabilities differ by {difference:.3f} nats per token, and at most {tolerance:g} are allowed. "
        "Serve the adapter's own base model and revision, or raise spec.verification.tolerance "
        "if the engine quantises it",
    )


def judge_merged(logprobs: list[float], questions: list[Question], tolerance: float) -> Verdict:
    """Compare the merged model that the engine serves with the trainer's adapter on its base.

    Args:
        logprobs: The engine's log-probability for each question.
        questions: The questions.
        tolerance: Largest mean difference, in nats per token.
    """
    if not all(map(math.isfinite, logprobs)):
        text = "the engine's log-probabilities are infinite or not a number (NaN): use another type (--dtype)"
        return Verdict(Reason.PROOF_FAILED, text)
    effect = measure_effect(logprobs, None, questions) if _is_visible(questions) else None
    if effect and (effect.is_too_low or effect.is_too_high):
        return Verdict(
            Reason.PROOF_FAILED,
            f"the engine does not answer as the merged model: {effect.share:.0%} of the adapter's effect is there "
            f"(standard error {effect.error:.0%}). It serves another model, or changes its weights when it loads them",
        )
    difference = mean_difference(logprobs, [question.adapter for question in questions])
    if difference > tolerance:
        return Verdict(
            Reason.PROOF_FAILED,
            f"the engine's answers differ from the merged model's by {difference:.3f} nats per token, and at most "
            f"{tolerance:g} are allowed: it serves another model, or quantises it (then raise "
            "spec.verification.tolerance)",
        )
    return Verdict(None, f"{effect or ''}the merged model differs by {difference:.4f} nats per token")


def judge_adapter(logprobs: list[float], base: list[float], questions: list[Question], tolerance: float) -> Verdict:
    """Compare what answers under the adapter's name with the trainer's adapter and the engine's base.

    Args:
        logprobs: Log-probability for each question under the adapter's name.
        base: The same under the engine's own base.
        questions: The questions.
        tolerance: Largest mean difference, in nats per token.
    """
    if not all(map(math.isfinite, logprobs)):
        return Verdict(
            Reason.PROOF_FAILED,
            "the engine's log-probabilities under the adapter's name are infinite or not a number (NaN): the adapter's "
            "numbers exceed the range of the engine's type (--dtype)",
        )
    effect = measure_effect(logprobs, base, questions) if _is_visible(questions) else None
    if effect and effect.is_too_low:
        return Verdict(
            Reason.PROOF_FAILED,
            f"the engine accepted the adapter, but only {max(effect.share, 0.0):.0%} of its effect is there "
            f"(standard error {effect.error:.0%}): the engine applies none, or a part, of its modules, or another "
            "scale. Check that the adapter's target modules exist in the served model under the same names, "
            "and that the engine's version applies its scale (status.engines)",
        )
    if effect and effect.is_too_high:
        return Verdict(
            Reason.PROOF_FAILED,
            f"the engine accepted the adapter, but its effect is {effect.share:.0%} of the trained one "
            f"(standard error {effect.error:.0%}): the engine applies another scale, or other weights. "
            "Check that the engine's version applies the adapter's scale (status.engines)",
        )
    difference = mean_difference(logprobs, [question.adapter for question in questions])
    if difference > tolerance:
        return Verdict(
            Reason.PROOF_FAILED,
            "what answers under the adapter's name differs from the trained adapter "
            f"by {difference:.3f} nats per token, and at most {tolerance:g} are allowed (spec.verification.tolerance)",
        )
    return Verdict(None, f"{effect or ''}the adapter differs by {difference:.4f} nats per token")


def judge_base_after_load(
    after: list[float], before: list[float], questions: list[Question], tolerance: float
) -> Verdict:
    """Judge whether the engine's base still answers as it did before the adapter was loaded.

    Args:
        after: Log-probability for each question under the engine's base, with the adapter loaded.
        before: The same before the load.
        questions: The questions.
        tolerance: Largest mean difference, in nats per token.
    """
    difference = mean_difference(after, before)
    effect = measure_effect(after, before, questions) if _is_visible(questions) else None
    if difference <= tolerance and (effect is None or abs(effect.share) <= effect.allowed_deviation):
        return Verdict(None, f"with the adapter loaded, the base differs by {difference:.4f} nats per token")
    return Verdict(
        Reason.PROOF_FAILED,
        f"with the adapter loaded, the engine's base answers differently, by {difference:.3f} nats per token: "
        "its own requests run through the adapter. Give the engine more slots than it loads adapters (--max-loras), "
        "and restart it",
    )


def measure_effect(logprobs: list[float], base: list[float] | None, questions: list[Question]) -> Effect:
    """Return the share of the trained effect that shows, and its standard error.

    The share is the least-squares coefficient of (measured - base) on (adapter - base) of the questions: 1 for
    the right weights, 0 for the base. The noise of an answer is that of the fit, or that of the engine's base against
    the trainer's, whichever is smaller, so that the bad fit of wrong weights does not widen the limits.

    Args:
        logprobs: Log-probability for each question.
        base: The same under the engine's base before the load. None: it serves none, and the trainer's stands for it;
            then only the fit tells the noise.
        questions: The questions, with an effect.
    """
    known, base = base is not None, base if base is not None else [question.base for question in questions]
    trained = [question.adapter - question.base for question in questions]
    shown_effect = [a - b for a, b in zip(logprobs, base, strict=True)]
    size = sum(value * value for value in trained)
    effect = sum(a * b for a, b in zip(shown_effect, trained, strict=True)) / size
    misfit = sum((a - effect * b) ** 2 for a, b in zip(shown_effect, trained, strict=True))
    of_fit = misfit / (len(trained) - 1) if len(trained) > 1 else math.inf
    of_base = sum((value - question.base) ** 2 for value, question in zip(base, questions, strict=True)) / len(trained)
    return Effect(effect, math.sqrt((min(of_fit, 2 * of_base) if known else of_fit) / size))


def _is_visible(questions: list[Question]) -> bool:
    effect = sum(abs(question.adapter - question.base) for question in questions) / len(questions)
    return effect > MIN_VISIBLE_EFFECT

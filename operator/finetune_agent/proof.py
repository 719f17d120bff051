"""Judge from an engine's log-probabilities whether the right base, and the right adapter, answer. Pure.

A status of 200 is no proof: an engine may accept an adapter, apply none of it, and let the base answer under its name.
"""

from dataclasses import dataclass

from finetune_api.manifest import GoldenSample, GoldenSamples
from finetune_api.reasons import Reason

MIN_VISIBLE_EFFECT = 0.01
"""Mean effect of an adapter, in nats per token, below which it cannot be told from the engine's rounding."""
MIN_EFFECT = 0.5
"""Share of the trained effect that must show. Rounding and quantisation change it by a few percent."""
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


def mean_difference(measured: list[float], expected: list[float]) -> float:
    """Return the mean absolute difference, in nats per token. Raises ValueError if the lengths differ."""
    return sum(abs(a - b) for a, b in zip(measured, expected, strict=True)) / len(expected)


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


def judge_base(measured: list[float], questions: list[Question], tolerance: float) -> Verdict:
    """Compare the engine's base with the base that the adapter was trained on.

    Args:
        measured: The engine's log-probability for each question.
        questions: The questions.
        tolerance: Largest mean difference, in nats per token.
    """
    difference = mean_difference(measured, [question.base for question in questions])
    if difference <= tolerance:
        return Verdict(None, f"the base differs by {difference:.4f} nats per token")
    return Verdict(
        Reason.BASE_MODEL_MISMATCH,
        "the engine's base model is not the one that the adapter was trained on: "
        f"its log-probabilities differ by {difference:.3f} nats per token, allowed are {tolerance:g}. "
        "Serve the adapter's own base model and revision, or raise spec.verification.tolerance "
        "if the engine quantises it",
    )


def judge_adapter(measured: list[float], base: list[float], questions: list[Question], tolerance: float) -> Verdict:
    """Compare what answers under the adapter's name with the trainer's adapter, and with the engine's base.

    The share of the trained effect that shows is the least-squares coefficient of (measured - base) on
    (adapter - base) of the questions: 1 for the right weights, 0 for the base.

    Args:
        measured: Log-probability for each question under the adapter's name.
        base: The same under the engine's own base.
        questions: The questions.
        tolerance: Largest mean difference, in nats per token.
    """
    trained = [question.adapter - question.base for question in questions]
    shown = [a - b for a, b in zip(measured, base, strict=True)]
    if sum(map(abs, trained)) / len(trained) > MIN_VISIBLE_EFFECT:
        effect = sum(a * b for a, b in zip(shown, trained, strict=True)) / sum(a * a for a in trained)
        if effect < MIN_EFFECT:
            return Verdict(
                Reason.PROOF_FAILED,
                f"the engine accepted the adapter, but only {max(effect, 0.0):.0%} of its effect is there: "
                "the engine applies none, or a part, of its modules. "
                "Check that the adapter's target modules exist in the served model under the same names",
            )
    difference = mean_difference(measured, [question.adapter for question in questions])
    if difference > tolerance:
        return Verdict(
            Reason.PROOF_FAILED,
            "what answers under the adapter's name differs from the trained adapter "
            f"by {difference:.3f} nats per token, allowed are {tolerance:g} (spec.verification.tolerance)",
        )
    return Verdict(None, f"the adapter differs by {difference:.4f} nats per token")

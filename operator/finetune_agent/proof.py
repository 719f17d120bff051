"""Whether the log-probabilities that an engine gives show that the right base, and the right adapter, answer. Pure: numbers in, verdict out.

HTTP 200 is no proof: an engine may accept an adapter, apply none of it, and let the base answer under the adapter's name.
"""

from dataclasses import dataclass

from finetune_api.manifest import GoldenSample, GoldenSamples
from finetune_api.reasons import Reason

VISIBLE_NATS = 0.01
"""An adapter whose mean effect is smaller cannot be told from the engine's rounding, so its effect is not asked for."""
LEAST_EFFECT = 0.5
"""The part of the trained effect that must be there. Rounding and quantisation move it by a few percent, a missing adapter makes it 0."""
QUESTIONS_PER_SAMPLE = 8
"""Each is one token that the engine computes: a proof shares the engine with its clients, and must be small beside them."""


@dataclass(frozen=True)
class Question:
    """How probable ``token`` is after ``prompt``, and what the trainer's base and adapter said: log-probabilities."""

    prompt: tuple[int, ...]
    token: int
    base: float
    adapter: float


@dataclass(frozen=True)
class Verdict:
    """The outcome of a comparison; ``reason`` is None if it is proven. ``message`` names the numbers."""

    reason: Reason | None
    message: str


def mean_difference(measured: list[float], expected: list[float]) -> float:
    """Mean absolute difference, in nats per token. Raises ValueError if the lengths differ."""
    return sum(abs(a - b) for a, b in zip(measured, expected, strict=True)) / len(expected)


def questions(golden: GoldenSamples) -> list[Question]:
    """Of each sample the tokens at which the adapter differs most from its base: there the two are told apart best."""
    return [question for sample in golden.samples for question in _of_sample(sample)]


def _of_sample(sample: GoldenSample) -> list[Question]:
    found = [
        Question(tuple(sample.token_ids[: position + 1]), token, base, adapter)
        for position, (token, base, adapter) in enumerate(
            zip(sample.token_ids[1:], sample.base_logprobs, sample.adapter_logprobs, strict=True)
        )
    ]
    return sorted(found, key=lambda question: -abs(question.adapter - question.base))[:QUESTIONS_PER_SAMPLE]


def judge_base(measured: list[float], asked: list[Question], tolerance: float) -> Verdict:
    """Compare the engine's base with the base that the adapter was trained on. ``measured`` has a log-probability for each question."""
    difference = mean_difference(measured, [question.base for question in asked])
    if difference <= tolerance:
        return Verdict(None, f"the base differs by {difference:.4f} nats per token")
    return Verdict(
        Reason.BASE_MODEL_MISMATCH,
        f"the engine's base model is not the one that the adapter was trained on: its log-probabilities differ by {difference:.3f} nats per token, "
        f"allowed are {tolerance:g}. Serve the adapter's own base model and revision, or raise spec.verification.tolerance if the engine quantises it",
    )


def judge_adapter(measured: list[float], base: list[float], asked: list[Question], tolerance: float) -> Verdict:
    """Compare what answers under the adapter's name with the trainer's adapter, and make sure that it is not just the base.

    ``base`` is what the engine's own base gave for the same questions. How much of the trained change is there is the least-squares
    coefficient of (measured - base) on (adapter - base) of the questions: 1 for the right weights, 0 for the base.
    """
    wanted = [question.adapter - question.base for question in asked]
    seen = [a - b for a, b in zip(measured, base, strict=True)]
    if sum(map(abs, wanted)) / len(wanted) > VISIBLE_NATS:
        effect = sum(a * b for a, b in zip(seen, wanted, strict=True)) / sum(a * a for a in wanted)
        if effect < LEAST_EFFECT:
            return Verdict(
                Reason.PROOF_FAILED,
                f"the engine accepted the adapter, but only {max(effect, 0.0):.0%} of its effect is there: the engine applies none, or a part, of its "
                "modules. Check that the adapter's target modules exist in the served model under the same names",
            )
    difference = mean_difference(measured, [question.adapter for question in asked])
    if difference > tolerance:
        return Verdict(
            Reason.PROOF_FAILED,
            f"what answers under the adapter's name differs from the trained adapter by {difference:.3f} nats per token, allowed are {tolerance:g} "
            "(spec.verification.tolerance)",
        )
    return Verdict(None, f"the adapter differs by {difference:.4f} nats per token")

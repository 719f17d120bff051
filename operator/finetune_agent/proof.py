"""Whether the log-probabilities that an engine gives show that the right base, and the right adapter, answer. Pure: numbers in, verdict out.

HTTP 200 is no proof: an engine may accept an adapter, apply none of it, and let the base answer under the adapter's name.
"""

from dataclasses import dataclass

from finetune_api.manifest import GoldenSamples
from finetune_api.reasons import Reason

VISIBLE_NATS = 0.01
"""An adapter whose mean effect is smaller cannot be told from the engine's rounding, so its effect is not asked for."""
LEAST_EFFECT = 0.5
"""The part of the trained effect that must be there. Rounding and quantisation move it by a few percent, a missing adapter makes it 0."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of a comparison; ``reason`` is None if it is proven. ``message`` names the numbers."""

    reason: Reason | None
    message: str


def mean_difference(measured: list[float], expected: list[float]) -> float:
    """Mean absolute difference, in nats per token. Raises ValueError if the lengths differ."""
    return sum(abs(a - b) for a, b in zip(measured, expected, strict=True)) / len(expected)


def judge_base(measured: list[list[float]], golden: GoldenSamples, tolerance: float) -> Verdict:
    """Compare the engine's base with the base that the adapter was trained on, over all samples."""
    expected = _flat([sample.base_logprobs for sample in golden.samples])
    difference = mean_difference(_flat(measured), expected)
    if difference <= tolerance:
        return Verdict(None, f"the base differs by {difference:.4f} nats per token")
    return Verdict(
        Reason.BASE_MODEL_MISMATCH,
        f"the engine's base model is not the one that the adapter was trained on: its log-probabilities differ by {difference:.3f} nats per token, "
        f"allowed are {tolerance:g}. Serve the adapter's own base model and revision, or raise spec.verification.tolerance if the engine quantises it",
    )


def judge_adapter(
    measured: list[list[float]], base: list[list[float]], golden: GoldenSamples, tolerance: float
) -> Verdict:
    """Compare what answers under the adapter's name with the trainer's adapter, and make sure that it is not just the base.

    ``base`` is what the engine's own base gave for the same samples. How much of the trained change is there is the least-squares
    coefficient of (measured - base) on (adapter - base) of the golden samples: 1 for the right weights, 0 for the base.
    """
    ours, plain = _flat(measured), _flat(base)
    expected = _flat([sample.adapter_logprobs for sample in golden.samples])
    reference = _flat([sample.base_logprobs for sample in golden.samples])
    wanted = [a - b for a, b in zip(expected, reference, strict=True)]
    seen = [a - b for a, b in zip(ours, plain, strict=True)]
    if sum(map(abs, wanted)) / len(wanted) > VISIBLE_NATS:
        effect = sum(a * b for a, b in zip(seen, wanted, strict=True)) / sum(a * a for a in wanted)
        if effect < LEAST_EFFECT:
            return Verdict(
                Reason.PROOF_FAILED,
                f"the engine accepted the adapter, but only {max(effect, 0.0):.0%} of its effect is there: the engine applies none, or a part, of its "
                "modules. Check that the adapter's target modules exist in the served model under the same names",
            )
    difference = mean_difference(ours, expected)
    if difference > tolerance:
        return Verdict(
            Reason.PROOF_FAILED,
            f"what answers under the adapter's name differs from the trained adapter by {difference:.3f} nats per token, allowed are {tolerance:g} "
            "(spec.verification.tolerance)",
        )
    return Verdict(None, f"the adapter differs by {difference:.4f} nats per token")


def _flat(rows: list[list[float]]) -> list[float]:
    return [value for row in rows for value in row]

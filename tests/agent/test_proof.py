"""What counts as a proof: numbers in, verdict out."""

import random

import pytest

from finetune_agent.proof import QUESTIONS_PER_SAMPLE, Question, choose_questions, judge_adapter, judge_base
from finetune_api.manifest import GoldenSample, GoldenSamples
from finetune_api.reasons import Reason

TOKENS = 60
RANDOM = random.Random(7)
BASE = [-RANDOM.random() * 5 for _ in range(TOKENS)]
EFFECT = [RANDOM.gauss(0, 0.3) for _ in range(TOKENS)]
ADAPTER = [a + b for a, b in zip(BASE, EFFECT, strict=True)]


def asked(scale: float = 1.0) -> list[Question]:
    return [Question((1, 2), 3, base, base + scale * effect) for base, effect in zip(BASE, EFFECT, strict=True)]


def noisy(values: list[float], size: float) -> list[float]:
    return [value + RANDOM.gauss(0, size) for value in values]


def test_the_right_base_and_adapter_pass_exactly_and_with_bf16_noise() -> None:
    for noise in (0.0, 0.03):
        base = noisy(BASE, noise)
        assert judge_base(base, asked(), 0.25).reason is None
        assert judge_adapter(noisy(ADAPTER, noise), base, asked(), 0.25).reason is None


def test_another_base_fails() -> None:
    verdict = judge_base(noisy(BASE, 1.0), asked(), 0.25)
    assert verdict.reason is Reason.BASE_MODEL_MISMATCH
    assert "allowed are 0.25" in verdict.message


@pytest.mark.parametrize("scale", [0.1, 0.3, 1.0])
def test_the_base_under_the_adapters_name_fails_however_small_the_effect(scale: float) -> None:
    """A weak adapter is within the tolerance of its base: only the missing effect shows that the base answers."""
    assert judge_adapter(BASE, BASE, asked(scale), 0.25).reason is Reason.PROOF_FAILED


def test_another_adapter_fails_though_it_is_within_the_tolerance() -> None:
    other = [a + RANDOM.gauss(0, 0.1) for a in BASE]
    assert judge_adapter(other, BASE, asked(0.3), 0.25).reason is Reason.PROOF_FAILED


def test_an_adapter_of_which_a_third_is_applied_fails() -> None:
    third = [a + b / 3 for a, b in zip(BASE, EFFECT, strict=True)]
    assert "33% of its effect" in judge_adapter(third, BASE, asked(), 10).message


def test_an_adapter_that_answers_far_off_fails() -> None:
    wild = [a + 3 * b for a, b in zip(BASE, EFFECT, strict=True)]
    assert judge_adapter(wild, BASE, asked(), 0.25).reason is Reason.PROOF_FAILED


def test_an_adapter_without_any_effect_is_no_failure() -> None:
    """After zero training steps an adapter equals its base, so that its effect cannot be required."""
    assert judge_adapter(BASE, BASE, asked(0.0), 0.25).reason is None


def test_asked_is_where_the_adapter_makes_the_greatest_difference() -> None:
    base = [-1.0] * TOKENS
    adapter = list(base)
    changed = list(range(3, TOKENS, 7))[:QUESTIONS_PER_SAMPLE]
    for position in changed:
        adapter[position] = -0.5
    tokens = [100 + position for position in range(TOKENS + 1)]
    found = choose_questions(
        GoldenSamples(samples=[GoldenSample(token_ids=tokens, base_logprobs=base, adapter_logprobs=adapter)])
    )
    assert [question.token for question in found] == [101 + position for position in changed]
    assert all(question.prompt == tuple(tokens[: question.token - 100]) for question in found)
    assert {(question.base, question.adapter) for question in found} == {(-1.0, -0.5)}

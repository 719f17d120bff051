"""What counts as a proof: numbers in, verdict out."""

import random

import pytest

from finetune_agent.proof import (
    QUESTIONS_PER_SAMPLE,
    Question,
    choose_questions,
    judge_adapter,
    judge_base,
    judge_base_after_load,
)
from finetune_api.manifest import GoldenSample, GoldenSamples
from finetune_api.reasons import Reason

TOKENS = 60
RANDOM = random.Random(7)
BASE = [-RANDOM.random() * 5 for _ in range(TOKENS)]
EFFECT = [RANDOM.gauss(0, 0.3) for _ in range(TOKENS)]
ADAPTER = [a + b for a, b in zip(BASE, EFFECT, strict=True)]


@pytest.fixture(autouse=True)
def _same_noise() -> None:
    """Give each test the same noise, whichever tests ran before it."""
    RANDOM.seed(11)


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
    assert "at most 0.25 are allowed" in verdict.message


@pytest.mark.parametrize("scale", [0.1, 0.3, 1.0])
def test_the_base_under_the_adapters_name_fails_however_small_the_effect(scale: float) -> None:
    """A weak adapter is within the tolerance of its base: only the missing effect shows that the base answers."""
    assert judge_adapter(BASE, BASE, asked(scale), 0.25).reason is Reason.PROOF_FAILED


def test_another_adapter_fails_though_it_is_within_the_tolerance() -> None:
    other_adapter = [a + RANDOM.gauss(0, 0.1) for a in BASE]
    assert judge_adapter(other_adapter, BASE, asked(0.3), 0.25).reason is Reason.PROOF_FAILED


def test_an_adapter_of_which_a_third_is_applied_fails() -> None:
    third = [a + b / 3 for a, b in zip(BASE, EFFECT, strict=True)]
    assert "33% of its effect" in judge_adapter(third, BASE, asked(), 10).message


def test_an_adapter_whose_answers_are_far_off_fails() -> None:
    wild = [a + 3 * b for a, b in zip(BASE, EFFECT, strict=True)]
    assert judge_adapter(wild, BASE, asked(), 0.25).reason is Reason.PROOF_FAILED


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_an_answer_that_is_no_number_is_no_proof(value: float) -> None:
    assert judge_adapter([value] * TOKENS, BASE, asked(), 0.25).reason is Reason.PROOF_FAILED
    assert judge_base([value] * TOKENS, asked(), 0.25).reason is Reason.BASE_MODEL_MISMATCH
    assert judge_base_after_load([value] * TOKENS, BASE, asked(), 0.25).reason is Reason.PROOF_FAILED


def test_an_adapter_without_any_effect_is_no_failure() -> None:
    """After zero training steps an adapter equals its base, so that its effect cannot be required."""
    assert judge_adapter(BASE, BASE, asked(0.0), 0.25).reason is None


def test_questions_are_where_the_adapter_makes_the_greatest_difference() -> None:
    base = [-1.0] * TOKENS
    adapter = list(base)
    changed = list(range(3, TOKENS, 7))[:QUESTIONS_PER_SAMPLE]
    for position in changed:
        adapter[position] = -0.5
    tokens = [100 + position for position in range(TOKENS + 1)]
    questions = choose_questions(
        GoldenSamples(samples=[GoldenSample(token_ids=tokens, base_logprobs=base, adapter_logprobs=adapter)])
    )
    assert [question.token for question in questions] == [101 + position for position in changed]
    assert all(question.prompt == tuple(tokens[: question.token - 100]) for question in questions)
    assert {(question.base, question.adapter) for question in questions} == {(-1.0, -0.5)}


@pytest.mark.parametrize("noise", [0.0, 0.03])
@pytest.mark.parametrize("share", [0.5, 0.75, 1.3, 1.5])
def test_a_part_or_a_multiple_of_the_effect_fails_though_it_is_within_the_tolerance(share: float, noise: float) -> None:
    """Effects as an engine shows them that scales an adapter wrongly."""
    base = noisy(BASE, noise)
    scaled = noisy([a + share * b for a, b in zip(BASE, EFFECT, strict=True)], noise)
    verdict = judge_adapter(scaled, base, asked(), 0.25)
    assert verdict.reason is Reason.PROOF_FAILED
    assert "of its effect" in verdict.message or "of the trained one" in verdict.message


@pytest.mark.parametrize("share", [0.9, 1.1])
def test_a_share_as_quantisation_changes_it_passes(share: float) -> None:
    scaled = [a + share * b for a, b in zip(BASE, EFFECT, strict=True)]
    assert judge_adapter(scaled, BASE, asked(), 0.25).reason is None


@pytest.mark.parametrize("scale", [1.5, 2.0])
def test_an_ignored_scale_pattern_fails_however_badly_it_fits(scale: float) -> None:
    """Half of the modules are trained with another scale than the engine applies: the rest is no noise."""
    lost_part = [RANDOM.gauss(0, 0.3) for _ in range(TOKENS)]
    trained = [a + scale * b for a, b in zip(EFFECT, lost_part, strict=True)]
    questions = [Question((1, 2), 3, base, base + effect) for base, effect in zip(BASE, trained, strict=True)]
    logprobs = [base + a + b for base, a, b in zip(BASE, EFFECT, lost_part, strict=True)]
    assert judge_adapter(logprobs, BASE, questions, 0.25).reason is Reason.PROOF_FAILED


@pytest.mark.parametrize(("rounding", "reason"), [(0.0, Reason.PROOF_FAILED), (0.04, None)])
def test_a_weak_adapter_is_judged_as_far_as_the_engines_rounding_lets_it(
    rounding: float, reason: Reason | None
) -> None:
    """A share of 0.8 may be rounding where its standard error is a tenth; one of 0.4 is none."""
    base, questions = noisy(BASE, rounding), asked(0.2)
    noise = noisy([0.0] * TOKENS, rounding)
    along = sum(a * b for a, b in zip(noise, EFFECT, strict=True)) / sum(b * b for b in EFFECT)
    across = [a - along * b for a, b in zip(noise, EFFECT, strict=True)]
    for share, expected in ((0.8, reason), (0.4, Reason.PROOF_FAILED)):
        logprobs = [a + share * 0.2 * b + c for a, b, c in zip(base, EFFECT, across, strict=True)]
        assert judge_adapter(logprobs, base, questions, 0.25).reason is expected


def test_a_base_that_answers_as_the_adapter_once_it_is_loaded_fails() -> None:
    for share, reason in ((0.0, None), (0.1, None), (0.3, Reason.PROOF_FAILED), (1.0, Reason.PROOF_FAILED)):
        after = [a + share * b for a, b in zip(BASE, EFFECT, strict=True)]
        assert judge_base_after_load(after, BASE, asked(), 0.25).reason is reason
    assert judge_base_after_load(noisy(BASE, 1.0), BASE, asked(0.0), 0.25).reason is Reason.PROOF_FAILED


def test_rounding_of_the_base_between_two_answers_is_no_failure() -> None:
    before = noisy(BASE, 0.03)
    assert judge_base_after_load(noisy(BASE, 0.03), before, asked(), 0.25).reason is None

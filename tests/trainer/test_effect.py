"""Whether a loaded adapter changes its base as the trained one did: by its share of the trained effect."""

import random

import pytest

from finetune_trainer.evaluation.effect import Layout, compare_effects, find_mismatch, is_visible

pytestmark = pytest.mark.unit
TOKENS = 500


def noise(size: float, seed: int) -> list[float]:
    """Rounding, of this root mean square."""
    draw = random.Random(seed)
    return [draw.gauss(0, size) for _ in range(TOKENS)]


def add(*parts: list[float]) -> list[float]:
    """Return the sum, token by token."""
    return [sum(values) for values in zip(*parts, strict=True)]


def scale(factor: float, values: list[float]) -> list[float]:
    """Multiply the values by a factor."""
    return [factor * value for value in values]


NOTHING = [0.0] * TOKENS


@pytest.mark.parametrize("size", [2.0, 0.2, 0.06], ids=lambda size: f"{size} nats")
@pytest.mark.parametrize(
    ("name", "shown", "refused"),
    [
        ("the same", lambda effect: effect, False),
        ("without effect", lambda effect: NOTHING, True),
        ("another adapter", lambda effect: noise(effect[0] and 0.3, 9), True),
        ("its opposite", lambda effect: scale(-1, effect), True),
        ("a tenth of it", lambda effect: scale(0.1, effect), True),
        ("three times as much", lambda effect: scale(3, effect), True),
        ("the same and more of another", lambda effect: add(effect, scale(3, effect[1:] + effect[:1])), True),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("layout", ["rounded", "quantized"])
def test_an_effect_is_held_against_the_trained_one_however_small_it_is(
    layout: Layout, name: str, shown: object, refused: bool, size: float
) -> None:
    assert callable(shown)
    effect = noise(size, 1)
    trained, loaded = add(effect, noise(0.02, 2)), add(shown(effect), noise(0.02, 3))
    comparison = compare_effects(trained, loaded)
    assert is_visible(comparison, layout)
    assert (find_mismatch(comparison, layout) is not None) == refused, find_mismatch(comparison, layout)


@pytest.mark.parametrize(("factor", "refused"), [(1.0, False), (0.9, True), (1.1, True), (0.0, True)])
@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-4])
def test_where_nothing_is_rounded_a_tenth_is_seen(size: float, factor: float, refused: bool) -> None:
    effect = noise(size, 1)
    comparison = compare_effects(add(effect, noise(1e-6, 2)), add(scale(factor, effect), noise(1e-6, 3)))
    assert (find_mismatch(comparison, "exact") is not None) == refused


def test_an_effect_below_rounding_is_not_judged_but_must_stay_small() -> None:
    trained = add(noise(0.005, 1), noise(0.02, 2))
    alike = compare_effects(trained, noise(0.02, 3))
    assert not is_visible(alike, "rounded")
    assert find_mismatch(alike, "rounded") is None
    grown = compare_effects(trained, noise(1.0, 3))
    assert "nats per token" in (find_mismatch(grown, "rounded") or "")


@pytest.mark.parametrize(
    ("trained", "shown", "refused"), [([0.8], [0.8], False), ([0.8], [0.1], True), ([0.0], [0.0], False)]
)
def test_one_score_is_enough(trained: list[float], shown: list[float], refused: bool) -> None:
    assert (find_mismatch(compare_effects(trained, shown), "rounded") is not None) == refused

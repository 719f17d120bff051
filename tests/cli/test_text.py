"""Durations and sizes as text."""

from typing import Any

import pytest

from finetune_api.sizes import format_size
from finetune_api.timestamps import format_duration
from finetune_cli.status import describe
from finetune_cli.text import outcome


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59.6, "60s"),
        (119, "119s"),
        (120, "2m00s"),
        (754, "12m34s"),
        (3600, "1h00m"),
        (11100, "3h05m"),
        (187200, "2d4h"),
        (-3, "0s"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (999, "999 B"), (4_900_000, "4.9 MB"), (269_000_000, "269 MB"), (5.2e12, "5.2 TB")]
)
def test_sizes(number: float, text: str) -> None:
    assert format_size(number) == text


FULL = {"name": "full", "loss": 3.5, "improvementPercent": 10.26, "sizeBytes": 269_000_000}
GENERAL = {"baseLoss": 3.0, "loss": 3.1, "increasePercent": 3.33, "basePerplexity": 20.0855, "perplexity": 22.198}


@pytest.mark.parametrize(
    ("fields", "lines"),
    [
        ({}, ["held-out loss 3.900 → 3.600 (7.7% lower, 20 rows)"]),
        (
            {"basePerplexity": 49.402, "perplexity": 36.598, "step": 30, "passed": False, "forgetting": GENERAL},
            [
                "held-out loss 3.900 → 3.600 (7.7% lower, 20 rows)",
                "perplexity 49.4 → 36.6",
                "weights of step 30, the best of those evaluated",
                "general text: perplexity 20.1 → 22.2 (loss 3.3% higher)",
                "did not pass the gate: not published",
            ],
        ),
        (
            {"comparison": {"rows": [{"name": "base"}, FULL]}},
            [
                "held-out loss 3.900 → 3.600 (7.7% lower, 20 rows)",
                "full fine-tuning: held-out loss 3.500 (10.3% lower), weights of 269 MB",
            ],
        ),
        ({"comparison": {"rows": [{"name": "full"}]}}, ["held-out loss 3.900 → 3.600 (7.7% lower, 20 rows)"]),
        (
            {"loss": 4.095, "improvementPercent": -5.0, "comparison": {"rows": [FULL | {"improvementPercent": -0.26}]}},
            [
                "held-out loss 3.900 → 4.095 (5.0% higher, 20 rows)",
                "full fine-tuning: held-out loss 3.500 (0.3% higher), weights of 269 MB",
            ],
        ),
    ],
)
def test_what_the_evaluation_found(fields: dict[str, Any], lines: list[str]) -> None:
    evaluation = {"baseLoss": 3.9, "loss": 3.6, "improvementPercent": 7.7, "rows": 20}
    assert outcome({"status": {"evaluation": evaluation | fields}}) == lines


def test_the_status_says_what_was_chosen_and_why() -> None:
    status = {"trainingChoice": {"packing": True, "why": ["packing is on: it is proved"]}}
    item = {"kind": "FineTuneJob", "metadata": {"namespace": "team", "name": "job"}, "spec": {}, "status": status}
    lines = describe(item, wide=False)
    assert lines[lines.index("Chosen where spec.training is unset:") + 1] == "    packing is on: it is proved"

"""What follows from each version of vLLM: told in one place, and cautious where the version is not known."""

import pytest

from finetune_engines import ENGINES

PATTERNS = {"peft_type": "LORA", "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 32}}


@pytest.mark.parametrize(
    ("version", "disturbs", "keeps_cache", "ignores_patterns"),
    [
        ("0.33.0", False, False, False),
        ("0.32.0+cpu", False, False, False),
        ("0.32.1.dev7+gabcdef", False, False, False),
        ("0.32.0rc1", False, False, True),
        ("0.31.0", False, False, True),
        ("0.30.2", False, True, True),
        ("0.26.0", False, True, True),
        ("0.25.1", True, True, True),
        ("0.9.2", True, True, True),
        ("0.1.dev1+g1234567", True, True, True),
        ("dev", True, True, True),
        (None, True, True, True),
    ],
)
def test_what_a_version_decides(version: str | None, disturbs: bool, keeps_cache: bool, ignores_patterns: bool) -> None:
    judged = ENGINES["vllm"].judge_version(version)
    assert (judged.load_disturbs_requests, judged.name_keeps_cache) == (disturbs, keeps_cache)
    assert bool(judged.find_misserved(PATTERNS)) is ignores_patterns
    assert judged.find_misserved({"peft_type": "LORA", "rank_pattern": {}}) == []
    unknown = version in (None, "dev")
    assert len(judged.limits) == disturbs + keeps_cache + ignores_patterns + unknown
    assert any("counts as the oldest" in limit for limit in judged.limits) is unknown


def test_a_refused_pattern_is_reported_with_the_version_and_the_remedy() -> None:
    (problem,) = ENGINES["vllm"].judge_version("0.30.2").find_misserved(PATTERNS)
    assert "rank_pattern and alpha_pattern" in problem
    assert "vLLM 0.30.2" in problem
    assert "use vLLM 0.32 or newer" in problem

"""Decide when a proven adapter is proven again, and judge its answers then. Pure.

An engine may lose proven weights: when it wakes from sleep, by a memory fault, or when somebody else loads an adapter.
"""

from finetune_agent.proof import Question, Verdict, judge_adapter, judge_base_after_load
from finetune_agent.state import Memory
from finetune_api.messages import DesiredAdapter


def is_due(memory: Memory, adapter: DesiredAdapter, path: str, now: float) -> bool:
    """Return whether the last proof of the adapter at ``path`` is older than ``prove_every_seconds``."""
    proven_at = memory.proven_at.get((adapter.served_name, path))
    return adapter.prove_every_seconds > 0 and proven_at is not None and now - proven_at >= adapter.prove_every_seconds


def judge_again(
    logprobs: list[float], base: list[float], before: list[float], questions: list[Question], tolerance: float
) -> Verdict:
    """Judge an adapter, and its base, that were proven before.

    Args:
        logprobs: Log-probability for each question under the adapter's name, now.
        base: The same under the engine's base, now.
        before: The same under the engine's base, before the adapter was loaded.
        questions: The questions.
        tolerance: Largest mean difference, in nats per token.
    """
    verdict = judge_base_after_load(base, before, questions, tolerance)
    return verdict if verdict.reason is not None else judge_adapter(logprobs, before, questions, tolerance)

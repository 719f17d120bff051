"""Format ages and states for people."""

from datetime import UTC, datetime
from typing import Any

from finetune_api.sizes import format_size
from finetune_api.timestamps import format_duration, parse_timestamp


def age(timestamp: str | None) -> str:
    """Format the time since an RFC 3339 timestamp."""
    if not timestamp:
        return ""
    return format_duration((datetime.now(UTC) - parse_timestamp(timestamp)).total_seconds())


def condition(item: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return the condition of a type; an empty one if the object has none."""
    conditions = item.get("status", {}).get("conditions") or []
    return next((entry for entry in conditions if entry["type"] == kind), {})


def phase(item: dict[str, Any]) -> str:
    """Return the state of a FineTuneJob or an AdapterDeployment in one word."""
    return item.get("status", {}).get("phase") or condition(item, "Ready").get("reason") or "Pending"


def progress(item: dict[str, Any]) -> str:
    """Format the progress as ``step 12/100 (12%), loss 3.41, 120 tok/s, 5m10s left``, or as empty text."""
    reported = item.get("status", {}).get("progress")
    if not reported:
        return ""
    parts = [f"step {reported['step']}/{reported['totalSteps']} ({reported['percent']}%)"]
    if reported.get("loss") is not None:
        parts.append(f"loss {reported['loss']:.3f}")
    if reported.get("tokensPerSecond") is not None:
        parts.append(f"{reported['tokensPerSecond']:.0f} tok/s")
    if reported.get("etaSeconds"):
        parts.append(f"{format_duration(reported['etaSeconds'])} left")
    return ", ".join(parts)


def outcome(item: dict[str, Any]) -> list[str]:
    """Return the results of a finished object, one per line."""
    status = item.get("status", {})
    lines = []
    if evaluation := status.get("evaluation"):
        lines.append(
            f"held-out loss {evaluation['baseLoss']:.3f} → {evaluation['loss']:.3f} "
            f"({describe_change(-evaluation['improvementPercent'])}, {evaluation['rows']} rows)"
        )
        if evaluation.get("perplexity") is not None:
            lines.append(f"perplexity {evaluation['basePerplexity']:.3g} → {evaluation['perplexity']:.3g}")
        if evaluation.get("step") is not None:
            lines.append(f"weights of step {evaluation['step']}, the best of those evaluated")
        if forgetting := evaluation.get("forgetting"):
            lines.append(
                f"general text: perplexity {forgetting['basePerplexity']:.3g} → {forgetting['perplexity']:.3g} "
                f"(loss {describe_change(forgetting['increasePercent'])})"
            )
        lines += comparison(evaluation.get("comparison") or {})
        if evaluation.get("passed") is not None:
            lines.append("passed the gate" if evaluation["passed"] else "did not pass the gate: not published")
    if adapter := status.get("adapter"):
        lines.append(f"adapter {adapter['uri']}")
        lines.append(f"digest {adapter['digest']} ({format_size(adapter['sizeBytes'])})")
    if merged := status.get("mergedModel"):
        lines.append(f"merged model {merged['uri']} ({format_size(merged['sizeBytes'])})")
    if active := status.get("active"):
        lines.append(f"{item['spec']['servedName']} is served from {active['uri']}")
        lines.append(f"digest {active['digest']}")
    lines += [f"warning: {text}" for text in status.get("warnings") or []]
    return lines


def report(item: dict[str, Any]) -> list[str]:
    """Return the line with the address of the report; no line if there is none."""
    stored = item.get("status", {}).get("report")
    return [f"report {stored['uri']}"] if stored else []


def comparison(result: dict[str, Any]) -> list[str]:
    """Return the line with the result of full fine-tuning; without a result a warning says why."""
    return [
        f"full fine-tuning: held-out loss {row['loss']:.3f} ({describe_change(-row['improvementPercent'])}), "
        f"weights of {format_size(row['sizeBytes'])}"
        for row in result.get("rows", [])
        if row["name"] == "full" and row.get("loss") is not None
    ]


def describe_change(percent: float) -> str:
    """Describe a change of a loss, in percent of the base's: ``7.7% lower``."""
    return f"{abs(percent):.1f}% {'higher' if percent > 0 else 'lower'}"

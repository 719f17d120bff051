"""Summarize repeated measurements."""

import statistics


def spread(values: list[float]) -> dict[str, float]:
    """Return median, 99th percentile, minimum and maximum."""
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return {"median": statistics.median(ordered), "p99": p99, "min": ordered[0], "max": ordered[-1]}

"""Compute how much lower a loss or perplexity is than the base's, with one formula for trainer and operator."""


def improvement_percent(base: float, value: float) -> float:
    """Return by how much a value is lower than the base's, in percent of the base's; 0 for a base of 0."""
    return 100 * (base - value) / base if base else 0.0


def describe_improvement(percent: float, digits: int = 3) -> str:
    """Describe an improvement in words, such as ``12.3 % lower``."""
    return f"{abs(percent):.{digits}g} % {'lower' if percent >= 0 else 'higher'}"

"""Decide which share of the requests each version gets. Pure."""

Shares = dict[str, int]
"""Percentage of the requests that each name of a version gets, without those that get none."""


def divide(stable: str | None, new: str, *, is_resident: bool, percent: int | None) -> Shares | None:
    """Divide the requests between two versions; None if no version can answer yet.

    Args:
        stable: Name of the version that answered so far; None: none did.
        new: Name of the version that is rolled out.
        is_resident: Whether each pod that takes traffic has proven the new version.
        percent: Percentage of the present step of its canary; None: there is none, or it is over.
    """
    if not is_resident:
        return {stable: 100} if stable is not None else None
    if stable is None or percent is None or percent == 100:
        return {new: 100}
    return {stable: 100 - percent, new: percent}

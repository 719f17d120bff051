"""Read from an agent's log what the seconds of a roll-out on its pod went into. Pure."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

ACTIONS = ("download", "prove base", "load candidate", "prove", "swap")


@dataclass(frozen=True)
class PodTimes:
    """Where one pod's time went, in seconds. All of them together are ``total``.

    Attributes:
        turn: From the change until the operator gave the version to the pod.
        told: From there until its agent began.
        download: Download and check.
        load: Until the engine had loaded the candidate.
        proof: Proofs of the base and of the candidate.
        drain: Until the engine's requests under the served name had ended.
        swap: Unload the version before, load the new one under its name, and prove it there.
    """

    turn: float
    told: float
    download: float
    load: float
    proof: float
    drain: float
    swap: float

    @property
    def total(self) -> float:
        """Return the seconds from the change until the pod served the version, proven."""
        return self.turn + self.download + self.load + self.drain + self.own

    @property
    def own(self) -> float:
        """Return the seconds of the operator and of the agent: all but the turn, download, load and drain.

        The operator's first pass is part of each pod's ``turn``; it is in ``first_turn`` of the results.
        """
        return self.told + self.proof + self.swap


def read_times(lines: Iterable[str], served_name: str, digest: str, changed: float, given: float) -> PodTimes:
    """Read the times of one version from the log of the agent.

    Args:
        lines: The log; each line begins with seconds of the epoch.
        served_name: The served name.
        digest: Digest of the version.
        changed: When the version was changed, in seconds of the epoch.
        given: When the operator gave the version to the pod.

    Raises:
        KeyError: The pod does not serve the version; the argument is the first action that is missing.
    """
    at = _find_actions(lines, served_name, digest, changed)
    drain = at.get("drain", at["swap"])  # a pod that is alone does not leave its Service
    return PodTimes(
        turn=given - changed,
        told=at["download"] - given,
        download=at["prove base"] - at["download"],
        load=at["prove"] - at["load candidate"],
        proof=(at["load candidate"] - at["prove base"]) + (drain - at["prove"]),
        drain=at["swap"] - drain,
        swap=at["proven"] - at["swap"],
    )


def _find_actions(lines: Iterable[str], served_name: str, digest: str, changed: float) -> dict[str, float]:
    """Return when each action on the version began, and when it was proven under the served name."""
    name = re.escape(served_name)
    action = re.compile(rf"{name} \({digest.removeprefix('sha256:')[:12]}\): ({'|'.join(ACTIONS)})\b")
    at: dict[str, float] = {}
    for line in lines:
        time, _, text = line.partition(" ")
        if not re.fullmatch(r"[0-9.]+", time) or float(time) < changed:
            continue
        if match := action.match(text):
            at.setdefault(match[1], float(time))
        elif re.match(rf"{name}: draining\b", text):
            at.setdefault("drain", float(time))
        elif re.match(rf"{name} is proven\b", text) and "swap" in at:
            at.setdefault("proven", float(time))
    return at

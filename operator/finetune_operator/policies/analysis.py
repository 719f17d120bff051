"""Define what an analysis is about, and its outcome. Pure."""

from dataclasses import dataclass
from typing import Literal

from finetune_api.adapterdeployment import Analysis

Result = Literal["Passed", "Failed", "Inconclusive"]


@dataclass(frozen=True)
class AnalysisId:
    """The identity of an analysis: it differs for each step, each canary and each edit of the spec."""

    namespace: str
    name: str
    """Name of the AdapterDeployment."""
    uid: str
    generation: int
    started_at: str
    """Beginning of the canary."""
    step: int
    reached_at: str
    again: str = ""
    """Time of the result that a person asked to replace by another one; empty without such a request."""


@dataclass(frozen=True)
class Outcome:
    """The result of an analysis, and why."""

    result: Result
    message: str


@dataclass(frozen=True)
class Subject:
    """The canary that is analysed."""

    id: AnalysisId
    served_name: str
    digest: str
    previous_digest: str
    pods: tuple[str, ...]
    """Pods that serve the new version."""
    stable_pods: tuple[str, ...]
    model: str
    """Name under which the engine has the new version."""
    stable_model: str


@dataclass(frozen=True)
class AnalysisRequest:
    """An analysis that is due, and the canary that it is about."""

    analysis: Analysis
    subject: Subject

    @property
    def id(self) -> AnalysisId:
        """Return the identity of the analysis."""
        return self.subject.id


def fill(text: str, subject: Subject) -> str:
    """Replace the placeholders of a text by what they stand for."""
    values = {
        "pods": "|".join(subject.pods),
        "stablePods": "|".join(subject.stable_pods),
        "namespace": subject.id.namespace,
        "servedName": subject.served_name,
        "digest": subject.digest,
        "model": subject.model,
        "stableModel": subject.stable_model,
    }
    for name, value in values.items():
        text = text.replace(f"{{{{ {name} }}}}", value)
    return text

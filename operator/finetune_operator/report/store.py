"""The newest report of each pod, in memory only: a report that is lost with the process is sent again."""

from dataclasses import dataclass

from finetune_api.messages import AgentReport, ProgressReport

PodId = tuple[str, str, str]
"""Namespace, name and uid of a pod."""


@dataclass(frozen=True)
class TimedAgentReport:
    """What an agent said, and when (seconds since the epoch)."""

    report: AgentReport
    at: float


class Reports:
    """Reports by pod; forgotten when the pod is deleted."""

    def __init__(self) -> None:
        self._progress: dict[PodId, ProgressReport] = {}
        self._agents: dict[PodId, TimedAgentReport] = {}

    def progress(self, pod: PodId) -> ProgressReport | None:
        """What the trainer in this pod said last."""
        return self._progress.get(pod)

    def agent(self, pod: PodId) -> TimedAgentReport | None:
        """What the agent in this pod said last."""
        return self._agents.get(pod)

    def put_progress(self, pod: PodId, report: ProgressReport) -> None:
        """The newest wins."""
        self._progress[pod] = report

    def put_agent(self, pod: PodId, report: AgentReport, at: float) -> bool:
        """The newest wins; True if it says something else than the one before."""
        before = self._agents.get(pod)
        self._agents[pod] = TimedAgentReport(report, at)
        return before is None or before.report != report

    def forget(self, pod: PodId) -> None:
        """The pod is gone."""
        self._progress.pop(pod, None)
        self._agents.pop(pod, None)

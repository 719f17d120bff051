"""Keep the newest report of each pod, in memory only.

Pods send their reports again after a restart of the operator.
"""

from finetune_api.messages import AgentReport, ProgressReport

PodId = tuple[str, str, str]
"""Namespace, name and uid of a pod."""


class PodReports:
    """The newest report of each trainer and of each agent."""

    def __init__(self) -> None:
        """Create it without reports."""
        self._progress: dict[PodId, ProgressReport] = {}
        self._agents: dict[PodId, AgentReport] = {}

    def progress(self, pod: PodId) -> ProgressReport | None:
        """Return the newest report of the trainer in this pod."""
        return self._progress.get(pod)

    def agent(self, pod: PodId) -> AgentReport | None:
        """Return the newest report of the agent in this pod."""
        return self._agents.get(pod)

    def put_progress(self, pod: PodId, report: ProgressReport) -> None:
        """Store a trainer's report in place of the previous one."""
        self._progress[pod] = report

    def put_agent(self, pod: PodId, report: AgentReport) -> bool:
        """Store an agent's report in place of the previous one; return whether the two differ."""
        before = self._agents.get(pod)
        self._agents[pod] = report
        return before != report

    def forget(self, pod: PodId) -> None:
        """Drop the reports of a pod that was deleted."""
        self._progress.pop(pod, None)
        self._agents.pop(pod, None)

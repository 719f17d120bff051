"""Keep the newest analysis of each AdapterDeployment."""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from finetune_operator.analyses import http, objects
from finetune_operator.kube.client import Kube
from finetune_operator.policies.analysis import AnalysisId, AnalysisRequest, Outcome

MAX_REQUESTS = 16
"""Maximum number of HTTP requests of the whole operator at the same time."""
Owner = tuple[str, str]
"""Namespace and name of an AdapterDeployment."""


class _Started(NamedTuple):
    """An analysis that runs or has ended."""

    request: AnalysisRequest
    task: asyncio.Task[Outcome]


class Analyses:
    """The newest analysis of each AdapterDeployment: it runs, or it has an outcome."""

    def __init__(self, kube: Kube) -> None:
        """Begin without analyses."""
        self._kube = kube
        self._analyses: dict[Owner, _Started] = {}
        self._limit = asyncio.Semaphore(MAX_REQUESTS)
        self._removals: set[asyncio.Task[None]] = set()

    def start(self, request: AnalysisRequest, on_end: Callable[[], None]) -> None:
        """Start an analysis, unless it runs or has ended already.

        An older one of the same AdapterDeployment is cancelled. ``on_end`` is called when there is an outcome.
        """
        owner = (request.id.namespace, request.id.name)
        newest = self._analyses.get(owner)
        if newest is not None and newest.request.id == request.id:
            return
        self.forget(owner)
        task = asyncio.create_task(self._run(request), name=f"analysis of {'/'.join(owner)}")
        task.add_done_callback(lambda ended: None if ended.cancelled() else on_end())
        self._analyses[owner] = _Started(request, task)

    def find(self, owner: Owner) -> tuple[AnalysisId, Outcome] | None:
        """Return the newest analysis of an AdapterDeployment and its outcome, if it has ended."""
        newest = self._analyses.get(owner)
        if newest is None or not newest.task.done() or newest.task.cancelled():
            return None
        return newest.request.id, newest.task.result()

    def end(self, owner: Owner) -> None:
        """End the analysis of an AdapterDeployment if it runs: it does not count any more."""
        newest = self._analyses.get(owner)
        if newest is not None and not newest.task.done():
            self.forget(owner)

    def forget(self, owner: Owner) -> None:
        """Forget the analysis of an AdapterDeployment; end it if it runs."""
        newest = self._analyses.pop(owner, None)
        if newest is None or newest.task.done():
            return
        newest.task.cancel()
        if newest.request.analysis.url is None:
            removal = asyncio.create_task(objects.remove(newest.request, self._kube), name="removal of an analysis")
            self._removals.add(removal)  # the loop itself keeps only a weak reference
            removal.add_done_callback(self._removals.discard)

    async def _run(self, request: AnalysisRequest) -> Outcome:
        if request.analysis.url is not None:
            return await http.analyse(request, self._limit)
        return await objects.analyse(request, self._kube)

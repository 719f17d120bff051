"""Run the analyses of canaries in tasks of their own, so that no pass waits for a service of a user.

What is called was allowed by the administrator (``policies.allowed_urls``). No credentials are sent, no redirect and no
proxy of the environment is followed, and time and size of an answer are limited.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import NamedTuple

import aiohttp

from finetune_api.limits import quote
from finetune_operator.policies.analysis import AnalysisId, AnalysisRequest, Outcome, judge

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 10.0
"""Time limit of one request, from its start to the end of the answer."""
ATTEMPTS = 3
"""Number of requests without an answer after which an analysis is inconclusive."""
PAUSE_SECONDS = 5.0
"""Pause between two attempts."""
MAX_BYTES = 65536
"""Size of the beginning of an answer that is read."""
MAX_REQUESTS = 16
"""Maximum number of requests of the whole operator at the same time."""
Owner = tuple[str, str]
"""Namespace and name of an AdapterDeployment."""


class _Started(NamedTuple):
    """An analysis that runs or has ended."""

    id: AnalysisId
    task: asyncio.Task[Outcome]


class Analyses:
    """The newest analysis of each AdapterDeployment: it runs, or it has an outcome."""

    def __init__(self) -> None:
        """Begin without analyses."""
        self._analyses: dict[Owner, _Started] = {}
        self._limit = asyncio.Semaphore(MAX_REQUESTS)

    def start(self, request: AnalysisRequest, on_end: Callable[[], None]) -> None:
        """Start an analysis, unless it runs or has ended already.

        An older one of the same AdapterDeployment is cancelled. ``on_end`` is called when there is an outcome.
        """
        owner = (request.id.namespace, request.id.name)
        newest = self._analyses.get(owner)
        if newest is not None and newest.id == request.id:
            return
        self.forget(owner)
        task = asyncio.create_task(self._run(request), name=f"analysis of {'/'.join(owner)}")
        task.add_done_callback(lambda ended: None if ended.cancelled() else on_end())
        self._analyses[owner] = _Started(request.id, task)

    def find(self, owner: Owner) -> tuple[AnalysisId, Outcome] | None:
        """Return the newest analysis of an AdapterDeployment and its outcome, if it has ended."""
        newest = self._analyses.get(owner)
        if newest is None or not newest.task.done() or newest.task.cancelled():
            return None
        return newest.id, newest.task.result()

    def forget(self, owner: Owner) -> None:
        """Cancel and forget the analysis of an AdapterDeployment."""
        newest = self._analyses.pop(owner, None)
        if newest is not None:
            newest.task.cancel()

    async def _run(self, request: AnalysisRequest) -> Outcome:
        error_text = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(PAUSE_SECONDS)
            try:
                async with self._limit:
                    status, content = await ask(request)
                return judge(request.analysis, status, content)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                error_text = quote(str(error)) or type(error).__name__
                logger.info("Analysis of %s/%s: %s", request.id.namespace, request.id.name, error_text)
        return Outcome("Inconclusive", f"{request.analysis.url} did not answer in {ATTEMPTS} attempts: {error_text}")


async def ask(request: AnalysisRequest) -> tuple[int, bytes]:
    """Send a request; return the HTTP status and the first ``MAX_BYTES`` of the answer. Raises aiohttp's errors."""
    async with (
        aiohttp.ClientSession(
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
            headers={"User-Agent": "finetune-operator", "Accept-Encoding": "identity"},
            auto_decompress=False,
            trust_env=False,
        ) as session,
        session.request(
            "GET" if request.body is None else "POST",
            request.url,
            params=request.query,
            json=request.body,
            allow_redirects=False,
        ) as response,
    ):
        content = bytearray()
        async for block in response.content.iter_any():
            content += block
            if len(content) >= MAX_BYTES:
                break
        return response.status, bytes(content[:MAX_BYTES])

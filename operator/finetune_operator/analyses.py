"""Make the analyses of canaries: the requests that users ask for run beside the passes, which they never hold up.

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
"""For one request, from its start to the end of the answer."""
ATTEMPTS = 3
"""Requests before a service that does not answer makes an analysis inconclusive."""
PAUSE_SECONDS = 5.0
"""Between two attempts."""
MAX_BYTES = 65536
"""Read of an answer."""
MAX_REQUESTS = 16
"""Requests of the whole operator at the same time."""
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
        """Start an analysis, unless it runs or has ended already; an older one of the same object ends."""
        owner = (request.id.namespace, request.id.name)
        newest = self._analyses.get(owner)
        if newest is not None and newest.id == request.id:
            return
        self.forget(owner)
        task = asyncio.create_task(self._make(request), name=f"analysis of {'/'.join(owner)}")
        task.add_done_callback(lambda ended: None if ended.cancelled() else on_end())
        self._analyses[owner] = _Started(request.id, task)

    def find(self, owner: Owner) -> tuple[AnalysisId, Outcome] | None:
        """Return the newest analysis of an AdapterDeployment and its outcome, if it has ended."""
        newest = self._analyses.get(owner)
        if newest is None or not newest.task.done() or newest.task.cancelled():
            return None
        return newest.id, newest.task.result()

    def forget(self, owner: Owner) -> None:
        """End and forget the analysis of an AdapterDeployment."""
        newest = self._analyses.pop(owner, None)
        if newest is not None:
            newest.task.cancel()

    async def _make(self, request: AnalysisRequest) -> Outcome:
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
    """Send a request; return the status of the answer and the beginning of its content."""
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

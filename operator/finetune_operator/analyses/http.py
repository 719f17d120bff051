"""Ask a Prometheus or a webhook.

What is called was allowed by the administrator (``policies.allowed_urls``). No credentials are sent, no redirect and no
proxy of the environment is followed, and time and size of an answer are limited.
"""

import asyncio
import logging

import aiohttp

from finetune_api.limits import quote
from finetune_operator.policies.analysis import AnalysisRequest, Outcome
from finetune_operator.policies.analysis_http import HttpRequest, build_request, judge

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 10.0
"""Time limit of one request, from its start to the end of the answer."""
ATTEMPTS = 3
"""Number of requests without an answer after which an analysis is inconclusive."""
PAUSE_SECONDS = 5.0
"""Pause between two attempts."""
MAX_BYTES = 65536
"""Size of the beginning of an answer that is read."""


async def analyse(request: AnalysisRequest, limit: asyncio.Semaphore) -> Outcome:
    """Ask until there is an answer, at most ``ATTEMPTS`` times; ``limit`` bounds the requests of the whole operator."""
    http_request, error_text = build_request(request), ""
    for attempt in range(ATTEMPTS):
        if attempt:
            await asyncio.sleep(PAUSE_SECONDS)
        try:
            async with limit:
                status, content = await ask(http_request)
            return judge(request.analysis, status, content)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            error_text = quote(str(error)) or type(error).__name__
            logger.info("Analysis of %s/%s: %s", request.id.namespace, request.id.name, error_text)
    return Outcome("Inconclusive", f"{request.analysis.url} did not answer in {ATTEMPTS} attempts: {error_text}")


async def ask(request: HttpRequest) -> tuple[int, bytes]:
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

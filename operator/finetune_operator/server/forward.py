"""Forward a report from a waiting replica to the leading one. The Service sends reports to all replicas."""

import aiohttp
from aiohttp import web

from finetune_api.messages import ReportAnswer

FORWARDED = "X-Finetune-Forwarded"
"""Header of reports that another replica forwarded; they are not forwarded again."""
TIMEOUT = aiohttp.ClientTimeout(total=10)
NO_LEADER = "no replica of the operator leads at the moment: send it again"


async def forward(request: web.Request, address: str) -> tuple[int, str]:
    """Forward a report to the replica at this address; return HTTP status and message of its answer.

    Raises:
        web.HTTPRequestEntityTooLarge: The report is larger than the application allows.
    """
    if not address or FORWARDED in request.headers:
        return 503, NO_LEADER
    headers = {"Authorization": request.headers.get("Authorization", ""), FORWARDED: "true"}
    content = await request.read()
    try:
        async with (
            aiohttp.ClientSession(timeout=TIMEOUT) as session,
            session.post(f"{address}{request.path}", data=content, headers=headers) as answer,
        ):
            return answer.status, ReportAnswer.model_validate_json(await answer.read()).message
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return 503, NO_LEADER

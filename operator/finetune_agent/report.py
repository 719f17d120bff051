"""What the agent tells the operator, at each change and every few seconds. An operator that cannot be reached changes nothing."""

import asyncio
import contextlib
import logging

import httpx

from finetune_agent.agent import Agent
from finetune_agent.readiness import proven_digest
from finetune_agent.state import Standing, version_of
from finetune_api.messages import AGENT_PATH, AgentAdapter, AgentReport, DesiredAdapter

log = logging.getLogger(__name__)

LEAST_PAUSE_SECONDS = 0.2
"""Between two reports, so that a burst of changes is one."""


def build(agent: Agent) -> AgentReport:
    """The report as of now."""
    desired = agent.desired
    return AgentReport(
        engine_ready=agent.view is not None,
        ready=agent.readiness(agent.view).ready,
        adapters=[_adapter(agent, adapter) for adapter in desired.adapters] if desired else [],
    )


def _adapter(agent: Agent, adapter: DesiredAdapter) -> AgentAdapter:
    memory, name = agent.memory, adapter.served_name
    version = version_of(adapter, agent.settings.pod) or adapter.version
    standing = memory.standings.get(name, Standing("Pending"))
    seconds = memory.load_seconds.get((name, version.digest))
    return AgentAdapter(
        deployment=adapter.deployment,
        served_name=name,
        digest=version.digest,
        active_digest=proven_digest(memory, agent.view, agent.settings.adapters_directory, name)
        if agent.view
        else None,
        state=standing.state,
        reason=standing.reason,
        message=standing.message,
        load_seconds=None if seconds is None else round(seconds, 3),
    )


async def run(agent: Agent) -> None:
    """Report until cancelled. Does nothing if there is no one to report to."""
    url = agent.settings.report_url
    if url is None:
        return
    complained = False
    async with httpx.AsyncClient(timeout=5.0, trust_env=False) as client:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(agent.changed.wait(), agent.settings.report_seconds)
            agent.changed.clear()
            problem = await send(client, url.rstrip("/") + AGENT_PATH, agent)
            if problem and not complained:
                log.warning("the operator did not take the report, and will be told again: %s", problem)
            complained = problem is not None
            await asyncio.sleep(LEAST_PAUSE_SECONDS)


async def send(client: httpx.AsyncClient, url: str, agent: Agent) -> str | None:
    """Send one report; what went wrong, if something did. The kubelet renews the token, so it is read each time."""
    try:
        token = agent.settings.token_file.read_text(encoding="utf-8").strip()
        answer = await client.post(url, json=build(agent).to_json(), headers={"Authorization": f"Bearer {token}"})
    except (OSError, httpx.HTTPError) as error:
        return f"{type(error).__name__}: {error}"
    return None if answer.is_success else f"{url} answered {answer.status_code}: {answer.text[:200]}"

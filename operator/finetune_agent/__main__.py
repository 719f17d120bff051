"""``python -m finetune_agent``: the agent in its container. The environment is read here, and nowhere else."""

import asyncio
import logging
import os
import time

import uvicorn

from finetune_agent import loop, report
from finetune_agent.agent import new_agent
from finetune_agent.server import application
from finetune_agent.settings import Settings

log = logging.getLogger("finetune_agent")


def settings_of(environment: dict[str, str]) -> Settings:
    """The settings from environment variables: POD_NAME, FINETUNE_REPORT_URL, FINETUNE_AGENT_PORT. Raises SystemExit with what is missing."""
    pod = environment.get("POD_NAME")
    if not pod:
        raise SystemExit("POD_NAME must be set to the pod's name (env valueFrom fieldRef metadata.name)")
    plain = Settings(pod=pod)
    return Settings(
        pod=pod,
        report_url=environment.get("FINETUNE_REPORT_URL") or None,
        port=int(environment.get("FINETUNE_AGENT_PORT", plain.port)),
    )


async def serve(settings: Settings) -> None:
    """Run loop, reports and probes until SIGTERM."""
    agent = new_agent(settings)
    agent.heartbeat = time.monotonic()
    server = uvicorn.Server(
        uvicorn.Config(
            application(agent),
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            lifespan="off",
        )
    )
    tasks = [asyncio.create_task(loop.run(agent)), asyncio.create_task(report.run(agent))]
    try:
        await server.serve()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if agent.engine is not None:
            await agent.engine.close()


def main() -> None:
    """Start the agent."""
    logging.basicConfig(
        level=os.environ.get("FINETUNE_LOG_LEVEL", "INFO"), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    asyncio.run(serve(settings_of(dict(os.environ))))


if __name__ == "__main__":
    main()

"""Start the agent in its container (``python -m finetune_agent``). Only this file reads the environment."""

import asyncio
import logging
import os
import time

import uvicorn

from finetune_agent.agent import Agent
from finetune_agent.loop import run_loop
from finetune_agent.reporting import send_reports
from finetune_agent.server import build_application
from finetune_agent.settings import Settings

log = logging.getLogger("finetune_agent")


def read_settings(environment: dict[str, str]) -> Settings:
    """Read the settings from POD_NAME, FINETUNE_REPORT_URL and FINETUNE_AGENT_PORT.

    Raises:
        SystemExit: If POD_NAME is missing.
    """
    pod = environment.get("POD_NAME")
    if not pod:
        raise SystemExit("POD_NAME must be set to the pod's name (env valueFrom fieldRef metadata.name)")
    return Settings(
        pod=pod,
        report_url=environment.get("FINETUNE_REPORT_URL") or None,
        port=int(environment.get("FINETUNE_AGENT_PORT", Settings.port)),
    )


async def serve(settings: Settings) -> None:
    """Run the loop, the reports and the probes until SIGTERM."""
    agent = Agent(settings)
    agent.heartbeat = time.monotonic()
    server = uvicorn.Server(
        uvicorn.Config(
            build_application(agent),
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            lifespan="off",
        )
    )
    tasks = [asyncio.create_task(run_loop(agent)), asyncio.create_task(send_reports(agent))]
    try:
        await server.serve()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if agent.driver is not None:
            await agent.driver.close()


def main() -> None:
    """Start the agent."""
    logging.basicConfig(
        level=os.environ.get("FINETUNE_LOG_LEVEL", "INFO"), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    asyncio.run(serve(read_settings(dict(os.environ))))


if __name__ == "__main__":
    main()

"""Run a double of vLLM for each pod: ``python -m bench.rollout.engines PORT ADDRESS…``.

All of them are one process, which takes less CPU time from the agents than one each.
"""

import asyncio
import sys

import uvicorn

from bench.agent.engine import build_application


async def serve(port: int, addresses: list[str]) -> None:
    """Serve an engine of its own at each address."""
    servers = [
        uvicorn.Server(
            uvicorn.Config(build_application(), host=address, port=port, log_config=None, lifespan="off")
        ).serve()
        for address in addresses
    ]
    await asyncio.gather(*servers)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2:]))

"""Have a version downloaded by a process of its own, which gives the memory of boto3 back when it ends."""

import asyncio
import contextlib
import json
import sys
from pathlib import Path

from finetune_agent.settings import Settings
from finetune_api.messages import DesiredAdapter, DesiredVersion
from finetune_artifacts.errors import ArtifactError, Fault, Purpose

MODULE = "finetune_agent.download"


async def fetch_version(
    settings: Settings, adapter: DesiredAdapter, version: DesiredVersion, directory: Path, *, merged: bool
) -> None:
    """Download a version into ``directory``, completely and verified, or not at all; ``merged``: a merged model.

    Raises:
        ArtifactError: If the storage refuses or the process ends early.
        OSError: If the disk is full, for example.
    """
    request = {
        "endpoint": adapter.endpoint,
        "region": adapter.region,
        "secret": str(settings.secrets_directory / adapter.secret) if adapter.secret else None,
        "uri": version.uri,
        "digest": version.digest,
        "merged": merged,
        "directory": str(directory),
        "patience_seconds": settings.download_patience_seconds,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", MODULE, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        answer, _ = await process.communicate(json.dumps(request).encode())
    finally:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            process.kill()
    if process.returncode != 0:
        text = f"the process of the download ended with {process.returncode}: see the log of the agent, and its memory"
        raise ArtifactError(Purpose.ADAPTER, Fault.OTHER, text)
    problem = json.loads(answer)
    if problem is None:
        return
    if "errno" in problem:
        raise OSError(problem["errno"], problem["strerror"])
    raise ArtifactError(Purpose.ADAPTER, Fault(problem["fault"]), problem["message"])

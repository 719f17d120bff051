"""A download is a process of its own, so that the agent keeps neither boto3 nor its memory."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from finetune_agent import fetch
from finetune_agent.settings import Settings
from finetune_api.messages import DesiredAdapter, DesiredVersion
from finetune_api.reasons import Reason
from finetune_artifacts.errors import ArtifactError

VERSION = DesiredVersion(uri="s3://bucket/adapter", digest=f"sha256:{'a' * 64}")


def test_the_agent_itself_imports_no_s3_library() -> None:
    program = "import sys, finetune_agent.__main__; print(*{'boto3', 'botocore'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout.strip() == b""


def test_a_download_whose_process_ends_is_a_failure_that_names_its_status(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fetch, "MODULE", "no_such_module")
    adapter = DesiredAdapter(deployment="bot", served_name="bot", version=VERSION)
    with pytest.raises(ArtifactError, match="ended with 1") as caught:
        asyncio.run(fetch.fetch_version(Settings("pod"), adapter, VERSION, tmp_path / "version", merged=False))
    assert caught.value.reason is Reason.DOWNLOAD_FAILED

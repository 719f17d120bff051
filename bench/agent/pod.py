"""Give the agent what its pod would have: an adapter in S3, the mounted files, and a process."""

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

from bench.agent.engine import ADAPTER_LOGPROB, BASE_LOGPROB
from finetune_api.manifest import AdapterManifest, GoldenSample, GoldenSamples, Origin
from finetune_api.messages import DesiredAdapter, DesiredState, DesiredVersion
from finetune_api.uris import S3Uri
from finetune_artifacts.upload import put_manifest, upload_directory
from tools.testing.s3_server import S3Server

SECRET = "s3"
RUN = """
import asyncio, json, sys
from pathlib import Path
from finetune_agent.__main__ import serve
from finetune_agent.settings import Settings
values, paths = json.loads(sys.argv[1])
asyncio.run(serve(Settings(**values, **{name: Path(path) for name, path in paths.items()})))
"""


def publish_adapter(s3: S3Server, bucket: str, name: str, directory: Path) -> DesiredVersion:
    """Put an adapter of one module into S3, with samples that the double of the engine answers.

    Args:
        s3: The S3 service.
        bucket: Its bucket.
        name: Prefix of the adapter's objects. Another name is another version, with a digest of its own.
        directory: Directory to create for the adapter's files.
    """
    directory.mkdir()
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"], "bias": "none"}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    tokens = list(range(9))
    sample = GoldenSample(token_ids=tokens, base_logprobs=[BASE_LOGPROB] * 8, adapter_logprobs=[ADAPTER_LOGPROB] * 8)
    (directory / "golden.json").write_text(GoldenSamples(samples=[sample]).model_dump_json(by_alias=True))
    header = json.dumps(
        {
            "m.q_proj.lora_A.weight": {"dtype": "F32", "shape": [1, 4], "data_offsets": [0, 16]},
            "m.q_proj.lora_B.weight": {"dtype": "F32", "shape": [4, 1], "data_offsets": [16, 32]},
        }
    ).encode()
    (directory / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(32))
    store, uri = s3.store(), S3Uri(bucket, name)
    manifest = AdapterManifest(
        job=Origin(namespace="bench", name=name, uid="0"),
        created_at="2026-01-01T00:00:00Z",
        base_model="base",
        peft_type="LORA",
        files=upload_directory(store, uri, directory),
    )
    return DesiredVersion(uri=str(uri), digest=put_manifest(store, uri, manifest))


def start_agent(
    directory: Path, s3: S3Server, engine_port: int, version: DesiredVersion, port: int
) -> "subprocess.Popen[bytes]":
    """Start an agent that is to serve a version, as a process."""
    adapter = DesiredAdapter(
        deployment="bench",
        served_name="bot",
        version=version,
        endpoint=s3.endpoint,
        region="us-east-1",
        secret=SECRET,
        prove_every_seconds=3600,
    )
    directory.mkdir()
    shutil.copytree(s3.secret, directory / "secrets" / SECRET)
    (directory / "desired.json").write_text(
        DesiredState(port=engine_port, adapters=[adapter]).model_dump_json(by_alias=True)
    )
    values = {"pod": "bench", "host": "127.0.0.1", "port": port}
    paths = {
        "desired_file": str(directory / "desired.json"),
        "adapters_directory": str(directory / "adapters"),
        "secrets_directory": str(directory / "secrets"),
    }
    return subprocess.Popen([sys.executable, "-c", RUN, json.dumps([values, paths])])

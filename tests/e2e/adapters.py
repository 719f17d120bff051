"""Adapters for the serving tests: a second version from a second job, and one of a higher rank made from the first."""

import hashlib
import json
from typing import Any

from safetensors.torch import load, save
from torch import Tensor, zeros

from tests.e2e.namespace import Object
from tests.e2e.objectstore import SECRET

BUCKET = "adapters"
CONFIG, WEIGHTS, MANIFEST = "adapter_config.json", "adapter_model.safetensors", "manifest.json"


def adapter_deployment(name: str, uri: str, digest: str, endpoint: str) -> Object:
    """Return an AdapterDeployment of the same name as its served name, for the demo's inference Deployment."""
    return {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "AdapterDeployment",
        "metadata": {"name": name},
        "spec": {
            "adapter": {"uri": uri, "digest": digest, "s3": {"endpoint": endpoint}, "secretRef": {"name": SECRET}},
            "servedName": name,
            "target": {"deploymentRef": {"name": "vllm"}},
        },
    }


def with_higher_rank(client: Any, source: str, target: str, rank: int) -> str:
    """Copy an adapter, with its matrices filled up with zeros to a higher rank; return the copy's digest.

    It computes the same as the original, so that nothing but its rank is wrong with it.
    """
    manifest = json.loads(_read(client, f"{source}/{MANIFEST}"))
    files = {entry["path"]: _read(client, f"{source}/{entry['path']}") for entry in manifest["files"]}
    config = json.loads(files[CONFIG])
    alpha = config["lora_alpha"] / config["r"] * rank
    files[CONFIG] = json.dumps(config | {"r": rank, "lora_alpha": alpha}).encode()
    files[WEIGHTS] = save({name: _filled(name, tensor, rank) for name, tensor in load(files[WEIGHTS]).items()})
    entries = [{"path": path, "sizeBytes": len(content), "sha256": _sha256(content)} for path, content in files.items()]
    files[MANIFEST] = json.dumps(manifest | {"rank": rank, "alpha": alpha, "files": entries}).encode()
    for path, content in files.items():
        client.put_object(Bucket=BUCKET, Key=f"{target}/{path}", Body=content)
    return _sha256(files[MANIFEST])


def _filled(name: str, tensor: Tensor, rank: int) -> Tensor:
    rows, columns = tensor.shape
    filled = zeros((rank, columns) if "lora_A" in name else (rows, rank), dtype=tensor.dtype)
    filled[:rows, :columns] = tensor
    return filled


def _read(client: Any, key: str) -> bytes:
    return bytes(client.get_object(Bucket=BUCKET, Key=key)["Body"].read())


def _sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"

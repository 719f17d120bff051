"""Define the spec of a job that succeeds, and the messages of its pods."""

from typing import Any

DIGEST = "sha256:" + "a" * 64
SPEC: dict[str, Any] = {
    "model": {"uri": "s3://models/smollm", "secretRef": {"name": "s3-credentials"}},
    "dataset": {"uri": "configmap://texts/hamlet.txt"},
    "method": {"lora": {"rank": 8}},
    "output": {"s3": {"bucket": "adapters"}, "secretRef": {"name": "s3-credentials"}},
}
PREFLIGHT_PASSED: dict[str, Any] = {
    "kind": "PreflightResult",
    "estimate": {"trainableParameters": 10, "totalParameters": 1010},
    "modelRevision": "abc123",
}
ADAPTER: dict[str, Any] = {
    "uri": "s3://adapters/ns/a/11111111/adapter",
    "digest": DIGEST,
    "sizeBytes": 1000,
    "baseModel": "smollm",
    "peftType": "LORA",
    "rank": 8,
    "targetModules": ["q_proj"],
    "servableBy": ["vllm"],
}
PROGRESS: dict[str, Any] = {
    "step": 10,
    "totalSteps": 10,
    "percent": 100,
    "loss": 3.5,
    "updatedAt": "2026-01-01T12:00:00Z",
}
MERGED: dict[str, Any] = {
    "kind": "MergeResult",
    "reason": "Succeeded",
    "message": "the merged model is in s3://adapters/ns/a/11111111/merged",
    "mergedModel": {"uri": "s3://adapters/ns/a/11111111/merged", "digest": DIGEST, "sizeBytes": 2020},
}
SUCCEEDED: dict[str, Any] = {
    "kind": "TrainerResult",
    "reason": "Succeeded",
    "adapter": ADAPTER,
    "progress": PROGRESS,
    "evaluation": {"baseLoss": 3.9, "loss": 3.6, "improvementPercent": 7.7, "rows": 20},
    "report": {"uri": "s3://adapters/ns/a/11111111/adapter/report.html"},
}

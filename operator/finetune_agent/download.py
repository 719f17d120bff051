"""Download one version of an adapter or merged model: ``python -m finetune_agent.download``.

``finetune_agent.fetch`` starts it. The request is JSON on standard input. The answer is JSON on standard output: null,
or why it failed.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

from finetune_api.base import S3Location
from finetune_api.uris import parse_s3_uri
from finetune_artifacts.download import download_adapter, download_merged
from finetune_artifacts.errors import ArtifactError, Purpose
from finetune_artifacts.s3 import open_s3


def fetch(request: dict[str, Any]) -> dict[str, Any] | None:
    """Download a version, and return the fault of the storage or the error of the disk; None without one."""
    location = S3Location(endpoint=request["endpoint"], region=request["region"])
    secret = Path(request["secret"]) if request["secret"] else None
    try:
        storage = open_s3(location, secret, Purpose.ADAPTER, request["patience_seconds"])
        download = download_merged if request["merged"] else download_adapter
        download(storage, parse_s3_uri(request["uri"]), request["digest"], Path(request["directory"]))
    except ArtifactError as error:
        return {"fault": error.fault, "message": error.message}
    except OSError as error:
        return {"errno": error.errno, "strerror": error.strerror or str(error)}
    return None


if __name__ == "__main__":
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.stdout.write(json.dumps(fetch(json.load(sys.stdin))))

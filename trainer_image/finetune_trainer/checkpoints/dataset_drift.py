"""Whether the dataset is still the one that this job's checkpoints were made from. No run goes on with other rows, nor silently begins anew."""

import json
from itertools import zip_longest

from pydantic import ValidationError

from finetune_api.manifest import MANIFEST_NAME, CheckpointManifest, Origin
from finetune_api.reasons import Reason
from finetune_api.uris import S3Uri
from finetune_artifacts.checkpoints import list_checkpoints, list_runs
from finetune_artifacts.objects import head, read_object
from finetune_artifacts.store import Place
from finetune_trainer.runtime.failures import Failure

DIGESTS_FILE = "dataset.json"
"""Beside a checkpoint: the digests of the files of rows that it was made from, by their names."""
Digests = list[tuple[str, str]]


def encode_digests(digests: Digests) -> bytes:
    """What is kept beside a checkpoint."""
    return json.dumps(digests).encode()


def refuse_changed_data(output: Place, checkpoints: S3Uri, origin: Origin, digests: Digests) -> None:
    """Raise Failure(DATASET_CHANGED) if the newest checkpoint of a run of this very job was made from other files. Raises ArtifactError."""
    for run in list_runs(output, checkpoints):
        _refuse(output, run, origin, digests)


def _refuse(output: Place, run: S3Uri, origin: Origin, digests: Digests) -> None:
    for stored in list_checkpoints(output, run):
        if not stored.complete or head(output, stored.uri.child(DIGESTS_FILE)) is None:
            continue
        try:
            manifest = CheckpointManifest.model_validate_json(read_object(output, stored.uri.child(MANIFEST_NAME)))
            before = [
                (str(name), str(digest))
                for name, digest in json.loads(read_object(output, stored.uri.child(DIGESTS_FILE)))
            ]
        except (ValidationError, ValueError, TypeError):
            continue  # not whole: such a checkpoint is not continued from either
        if manifest.job == origin and before != digests:
            raise Failure(
                Reason.DATASET_CHANGED,
                f"the dataset is not the one that the checkpoint of step {stored.step} was made from: {_differences(before, digests)}. To go on, put the old "
                f"files back and create the job again with the same output prefix; to train on the new ones, create it again, or delete {run}",
                "spec.dataset.uri",
            )
        return


def _differences(before: Digests, after: Digests) -> str:
    """The files that differ, at most three of them, each with its old and its new digest."""
    changed = [
        f"{(new or old)[0]} was {old[1] if old else 'not there'}, is {new[1] if new else 'not there'}"
        for old, new in zip_longest(before, after)
        if old != new and (new or old)
    ]
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return "; ".join(changed[:3]) + more

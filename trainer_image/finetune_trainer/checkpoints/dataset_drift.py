"""Refuse to continue a job whose dataset has changed: a run must not continue with other rows, nor silently restart."""

import json
from itertools import zip_longest

from pydantic import ValidationError

from finetune_api.manifest import MANIFEST_NAME, CheckpointManifest, Origin
from finetune_api.reasons import Reason
from finetune_api.uris import StorageUri
from finetune_artifacts.checkpoints import list_checkpoints, list_runs
from finetune_artifacts.objects import read_object
from finetune_artifacts.storage import Storage
from finetune_trainer.runtime.failures import Failure

DIGESTS_FILE = "dataset.json"
"""The file beside a checkpoint that holds the digests of the dataset's files."""
MAX_SHOWN_FILES = 3
Digests = list[tuple[str, str]]
"""Name and digest of each file of rows."""


def encode_digests(digests: Digests) -> bytes:
    """Encode the digests as the JSON that lies beside a checkpoint."""
    return json.dumps(digests).encode()


def refuse_changed_data(output: Storage, checkpoints: StorageUri, origin: Origin, digests: Digests) -> None:
    """Check that the dataset is the one from which this job's checkpoints were made.

    The newest complete checkpoint of each run is compared.

    Raises:
        Failure: DATASET_CHANGED.
        ArtifactError: The storage fails or refuses.
    """
    for run in list_runs(output, checkpoints):
        _refuse_changed_data_of_run(output, run, origin, digests)


def _refuse_changed_data_of_run(output: Storage, run: StorageUri, origin: Origin, digests: Digests) -> None:
    for checkpoint in list_checkpoints(output, run):
        if not checkpoint.complete or output.head(checkpoint.uri.child(DIGESTS_FILE)) is None:
            continue
        try:
            manifest = CheckpointManifest.model_validate_json(read_object(output, checkpoint.uri.child(MANIFEST_NAME)))
            before = [
                (str(name), str(digest))
                for name, digest in json.loads(read_object(output, checkpoint.uri.child(DIGESTS_FILE)))
            ]
        except (ValidationError, ValueError, TypeError):
            continue  # damaged: such a checkpoint is not continued from either
        if manifest.job == origin and before != digests:
            raise Failure(
                Reason.DATASET_CHANGED,
                f"the dataset is not the one that the checkpoint of step {checkpoint.step} was made from: "
                f"{_describe_changes(before, digests)}. To continue, restore the old files and create the job again "
                f"with the same output prefix; to train on the new ones, create it again, or delete {run}",
                "spec.dataset.uri",
            )
        return


def _describe_changes(before: Digests, after: Digests) -> str:
    """Name the files that differ, each with its old and its new digest."""
    changes = [
        f"{(new or old)[0]} was {old[1] if old else 'not there'}, is {new[1] if new else 'not there'}"
        for old, new in zip_longest(before, after)
        if old != new and (new or old)
    ]
    rest = len(changes) - MAX_SHOWN_FILES
    return "; ".join(changes[:MAX_SHOWN_FILES]) + (f" and {rest} more" if rest > 0 else "")

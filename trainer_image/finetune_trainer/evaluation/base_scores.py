"""Keep the base's scores on the held-out rows in the storage, where a later attempt finds them.

The file is named by a digest of everything that decides the scores: base, rows, dtype, device and versions.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError

from finetune_api.base import Lenient
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.uris import StorageUri
from finetune_artifacts.digests import digest_of, digest_of_file
from finetune_artifacts.errors import ArtifactError, Fault
from finetune_artifacts.objects import read_object
from finetune_artifacts.storage import Storage
from finetune_trainer.data.dataset import Examples
from finetune_trainer.data.sources import Inputs
from finetune_trainer.distributed import process_group
from finetune_trainer.evaluation.measures import Scores
from finetune_trainer.models import device, loading
from finetune_trainer.runtime import libraries
from finetune_trainer.runtime.logs import log

DIRECTORY = "base-scores"
"""The directory beside the checkpoints' runs."""
VERSION = 1
"""Part of the digest. Raise it whenever the same base gets other scores for the same rows."""


class BaseScores(Lenient):
    """The base's scores on the held-out rows and, if forgetting is measured, its loss on the general text."""

    held_out: Scores
    general_loss: float | None


@dataclass(frozen=True)
class BaseScoreStore:
    """The stored scores of a job's base. ``components`` and the base's weights decide the scores."""

    storage: Storage
    directory: StorageUri
    components: dict[str, Any]
    keeps: bool = True
    """Whether scores are kept. Those of a model with code of its own are not, because its code decides them too."""

    def find_file(self, base: Any) -> StorageUri | None:
        """Return the address of the scores of a loaded base; None if they are not kept."""
        if not self.keeps or any(weight.is_meta for weight in base.parameters()):
            return None  # accelerate has moved weights to main memory: here they have no values to hash
        weights = {"weights": loading.digest_all_weights(base), "dtype": str(base.dtype)}
        content = json.dumps(self.components | weights, sort_keys=True).encode()
        return self.directory.child(f"{hashlib.sha256(content).hexdigest()[:32]}.json")

    def load_or_compute(self, file: StorageUri | None, compute: Callable[[], BaseScores]) -> BaseScores:
        """Return the scores in a file; if there are none, compute and keep them. A storage that fails is no error.

        A collective call. What the main process finds counts, and only that process has a file.
        """
        kept: BaseScores | None = process_group.broadcast(self._load(file) if file else None)
        if kept:
            log.info("the base's losses are known from an earlier attempt: %s", file)
            return kept
        scores = compute()
        try:
            if file is not None:
                self.storage.put_new(file, scores.model_dump_json(by_alias=True).encode())
        except ArtifactError as error:
            log.warning("the base's losses are not kept for a later attempt: %s", error)
        return scores

    def _load(self, file: StorageUri) -> BaseScores | None:
        try:
            return BaseScores.model_validate_json(read_object(self.storage, file))
        except ValidationError:
            log.warning("%s is damaged: the base's losses are computed again", file)
        except ArtifactError as error:
            if error.fault is not Fault.NO_OBJECT:
                log.warning("the base's losses are computed again: %s", error)
        return None


def open_store(
    storage: Storage,
    checkpoints: StorageUri,
    *,
    spec: FineTuneJobSpec,
    inputs: Inputs,
    examples: Examples,
    tokens: int,
    padding: int | None,
    placement: device.Placement,
) -> BaseScoreStore:
    """Return the store of a job's base scores.

    Args:
        storage: The storage of the output.
        checkpoints: Prefix of the checkpoints.
        spec: The job.
        inputs: Its files.
        examples: Its data.
        tokens: Maximum number of tokens in a batch.
        padding: The padding token's id for a model that scores texts; else None.
        placement: Where the base computes.
    """
    components = {
        "version": VERSION,
        "config": digest_of_file(inputs.model / "config.json"),
        "objective": [spec.objective, spec.preference.to_json() if spec.preference else None],
        "rows": _digest_json(examples.held_out_rows),
        "sequences": _digest_json([[each.input_ids, each.labels] for each in examples.held_out]),
        "general text": _digest_json([[each.input_ids, each.labels] for each in examples.forgetting_text]),
        "tokens": tokens,
        "padding": padding,
        "placement": placement,
        "device": device.device_name(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "libraries": libraries.library_versions(),
    }
    return BaseScoreStore(storage, checkpoints.child(DIRECTORY), components, keeps=not spec.model.trust_remote_code)


def _digest_json(value: Any) -> str:
    return digest_of(json.dumps(value, sort_keys=True).encode())

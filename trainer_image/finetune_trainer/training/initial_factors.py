"""Keep the factors with which PiSSA, OLoRA and LoftQ begin, so that a later attempt on any GPU continues the run.

Computed on another type of GPU, they differ in their last bits: the base without them would be another base, and the
run another run. The name of the file has the digest of what decides the factors and, for its integrity, its own.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.uris import StorageUri
from finetune_artifacts.digests import digest_of_file
from finetune_artifacts.errors import ArtifactError
from finetune_artifacts.storage import Storage, ignore_progress
from finetune_trainer.distributed import process_group
from finetune_trainer.methods import initialization
from finetune_trainer.models import loading
from finetune_trainer.runtime.background import start_thread
from finetune_trainer.runtime.logs import log
from finetune_trainer.session.session import Session

DIRECTORY = "initial-factors"
"""The directory beside the checkpoints' runs."""
VERSION = 1
"""Part of the name. Raise it whenever the same base gets other factors."""


@dataclass(frozen=True)
class InitialFactors:
    """The initial factors of a run: kept in the storage, and in a file for this attempt.

    Attributes:
        storage: The storage of the output.
        directory: Where they are kept.
        name: The digest of what decides them.
        path: The file of this attempt.
    """

    storage: Storage
    directory: StorageUri
    name: str
    path: Path

    @property
    def digest(self) -> str:
        """Return a digest of the base as it was before, the method and the factors."""
        return f"{self.name} {digest_of_file(self.path)}"

    def add_adapter(self, add: Callable[[initialization.Factors | None], Any], *, is_main_process: bool) -> Any:
        """Add the adapter with the kept factors; if there are none, compute and keep them.

        A collective call: the main process computes them, and all use the same.

        Args:
            add: Adds the adapter with these factors, or computes them.
            is_main_process: Whether this is the main process.
        """
        model = None
        if is_main_process:
            kept = initialization.load_factors(self.path) if self._download() else None
            model = add(kept)
            if kept is None:
                initialization.save_factors(initialization.read_factors(model), self.path)
                start_thread(self._upload)  # no GPU waits for it
        process_group.broadcast(None)
        return model if model is not None else add(initialization.load_factors(self.path))

    def _download(self) -> bool:
        """Download kept factors; return whether there are any. A storage that fails is no error."""
        try:
            for info in self.storage.list_objects(self.directory):
                name, _, digest = info.uri.key.rpartition("/")[2].removesuffix(".safetensors").partition("-")
                if name == self.name:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    self.storage.download([(info, self.path)], ignore_progress)
                    if digest_of_file(self.path) == f"sha256:{digest}":
                        log.info("the initial factors are those of an earlier attempt: %s", info.uri)
                        return True
                    log.warning("%s is damaged", info.uri)
        except ArtifactError as error:
            log.warning("the initial factors are computed again: %s", error)
        return False

    def _upload(self) -> None:
        digest = digest_of_file(self.path)
        uri = self.directory.child(f"{self.name}-{digest.removeprefix('sha256:')}.safetensors")
        try:
            self.storage.put_file(uri, self.path, digest)
        except (ArtifactError, OSError) as error:
            log.warning("the initial factors are not kept: an attempt on another GPU type begins at step 0: %s", error)


def find_initial_factors(session: Session, base: Any) -> InitialFactors:
    """Return the initial factors of the run that begins with this base, which has no adapter yet."""
    spec = session.settings.job.spec
    weights = loading.digest_base_weights(base) if session.process.is_main_process else ""
    components = [VERSION, weights, spec.method.to_json(), spec.training.seed]
    name = hashlib.sha256(json.dumps(components, sort_keys=True).encode()).hexdigest()[:32]
    directory = session.settings.checkpoints.child(DIRECTORY)
    return InitialFactors(session.output, directory, name, initial_factors_path(session))


def initial_factors_path(session: Session) -> Path:
    """Return the path of the initial factors, which the conversion to a plain LoRA subtracts."""
    return session.scratch / "initial.safetensors"

"""Parse a FineTuneJob, with its identity and its spec, from a file or from an API object."""

from typing import Any

from finetune_api.base import Model
from finetune_api.dataset import WORKSTATION
from finetune_api.finetunejob.spec import FineTuneJobSpec


class ObjectMeta(Model):
    """The part of ``metadata`` that identifies a job."""

    model_config = {"extra": "ignore"}

    namespace: str = "default"
    name: str
    uid: str = ""


class FineTuneJob(Model):
    """A FineTuneJob as a file or an API object; ``status`` and foreign metadata are left out."""

    model_config = {"extra": "ignore"}

    metadata: ObjectMeta
    spec: FineTuneJobSpec

    @classmethod
    def of(cls, resource: dict[str, Any], *, workstation: bool = False) -> "FineTuneJob":
        """Parse a FineTuneJob.

        Args:
            resource: The API object, or the content of a file.
            workstation: Whether model and data may be ``file://``.

        Raises:
            ValidationError: The object is invalid; ``validation.problems`` describes it with field paths.
        """
        return cls.model_validate(resource, context={WORKSTATION: workstation})

    @property
    def prefix(self) -> str:
        """Return the key prefix of this job's objects in ``spec.output.s3.bucket``."""
        meta = self.metadata
        return self.spec.output.s3.prefix or f"{meta.namespace}/{meta.name}/{meta.uid[:8] or 'local'}"

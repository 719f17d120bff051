"""Delete the temporary files of the comparison with full fine-tuning from the storage, without torch."""

from finetune_artifacts.errors import ArtifactError
from finetune_artifacts.objects import delete_objects
from finetune_artifacts.storage import Storage
from finetune_trainer.runtime.logs import log
from finetune_trainer.runtime.settings import Settings


def delete_comparison_files(settings: Settings, output: Storage) -> None:
    """Delete the comparison's files once its figures are in the manifest; a refusal is only logged."""
    if not settings.job.spec.evaluation.compare_with_full:
        return
    try:
        delete_objects(output, [item.uri for item in output.list_objects(settings.comparison)])
    except ArtifactError as error:
        log.warning("%s is no longer needed and could not be deleted: %s", settings.comparison, error)

"""What the comparison with full fine-tuning kept in S3 on its way, removed once its numbers are in a manifest. Knows no torch."""

from finetune_artifacts.errors import ArtifactError
from finetune_artifacts.objects import delete_objects, list_objects
from finetune_artifacts.store import Place
from finetune_trainer.runtime.logs import log
from finetune_trainer.runtime.settings import Settings


def delete_comparison_files(settings: Settings, output: Place) -> None:
    """Remove it. Storage that refuses is a line in the log: the adapter is published."""
    if not settings.job.spec.evaluation.compare_with_full:
        return
    try:
        delete_objects(output, [item.uri for item in list_objects(output, settings.comparison)])
    except ArtifactError as error:
        log.warning("%s could not be removed, which is of no more use: %s", settings.comparison, error)

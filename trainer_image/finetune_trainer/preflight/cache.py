"""Put the model into the cache of ``spec.model.cache``, after all other checks have passed."""

from finetune_trainer.models import base_files, model_cache
from finetune_trainer.models.model_cache import FIELD as CACHE_FIELD
from finetune_trainer.preflight.findings import CheckResult
from finetune_trainer.runtime.logs import phase
from finetune_trainer.runtime.settings import Settings

__all__ = ["CACHE_FIELD", "check_cache"]


def check_cache(settings: Settings, result: CheckResult, patience_seconds: float) -> None:
    """Download the model into the cache unless it is there.

    The job's own access to the model was checked before, so that a cached copy does not let others use a gated model.
    """
    assert settings.model_cache is not None, "the job has a cache"  # noqa: S101
    meta = settings.job.metadata
    with phase("putting the model into the cache"):
        model = base_files.list_remote_model(settings, patience_seconds)
        result.cached_model = model_cache.fill(settings.model_cache, model, f"{meta.namespace}/{meta.name}")

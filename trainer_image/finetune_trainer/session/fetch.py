"""Fetch an attempt's files in parallel: model, dataset, starting adapter and general text."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from finetune_trainer.data import forgetting_text, sources
from finetune_trainer.data.sources import DownloadedAdapter, Inputs, LocalData
from finetune_trainer.methods import starting_adapter
from finetune_trainer.models import base_files
from finetune_trainer.runtime.logs import log, phase
from finetune_trainer.runtime.settings import Settings

LOG_EVERY_PERCENT = 10


@contextmanager
def fetch_inputs(settings: Settings, patience_seconds: float) -> Iterator[Callable[[], Inputs]]:
    """Download an attempt's files in threads during a ``with`` block, whose end cancels unfinished downloads.

    Args:
        settings: The attempt's settings.
        patience_seconds: How long requests to a storage are repeated while it does not answer.

    Yields:
        A function that waits for all files. It raises Failure if a source cannot be used, or if the starting adapter
        belongs to another revision of the base, and ArtifactError if a storage fails or refuses.
    """
    pool = ThreadPoolExecutor(4, thread_name_prefix="fetch")
    try:
        adapter = pool.submit(fetch_adapter, settings, patience_seconds)
        general = pool.submit(forgetting_text.download, settings, patience_seconds)
        model = pool.submit(fetch_model, settings, patience_seconds)
        data = pool.submit(fetch_data, settings, patience_seconds)

        def wait_for_inputs() -> Inputs:
            with phase("waiting for the model and the data", "fetch"):
                dataset, validation = data.result()
                directory, commit = model.result()
            start = adapter.result()
            if start and (refusal := starting_adapter.compare_base_revisions(start.base_revision, commit)):
                raise refusal
            return Inputs(directory, commit, dataset, validation, adapter=start, forgetting_text=general.result())

        yield wait_for_inputs
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def fetch_model(settings: Settings, patience_seconds: float) -> tuple[Path, str | None]:
    """Return the base model's directory, and the commit of a hub model."""
    logged = 0

    def log_progress(done_bytes: int, total: int) -> None:
        nonlocal logged
        tenth = done_bytes * 100 // total // LOG_EVERY_PERCENT if total else 0
        if tenth > logged:
            logged = tenth
            log.info("fetching the model: %d of %d MB", done_bytes // 1_000_000, total // 1_000_000)

    return base_files.download_base(settings, settings.scratch / "model", patience_seconds, log_progress)


def fetch_adapter(settings: Settings, patience_seconds: float) -> DownloadedAdapter | None:
    """Fetch the adapter that the training starts from, if there is one."""
    adapter = starting_adapter.find_adapter(settings, patience_seconds)
    if adapter is None:
        return None
    directory = settings.scratch / "starting-adapter" / adapter.digest.removeprefix("sha256:")
    path = starting_adapter.download(settings, adapter, directory, patience_seconds)
    return DownloadedAdapter(path, adapter.digest, adapter.manifest.base_revision)


def fetch_data(settings: Settings, patience_seconds: float) -> tuple[LocalData, LocalData | None]:
    """Return the files of the dataset and, if it has files of its own, of the held-out data."""
    training, held_out = sources.find_splits(settings.job.spec.dataset)
    directory = settings.scratch / "data"
    data = sources.download(settings, training, directory / "dataset", patience_seconds)
    if held_out is None:
        return data, None
    return data, sources.download(settings, held_out, directory / "validation", patience_seconds)

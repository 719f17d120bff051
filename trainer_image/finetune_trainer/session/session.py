"""Group the objects that every part of one attempt uses: settings, inputs, storage, state and reporters."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from finetune_api.reasons import Reason
from finetune_artifacts.storage import Storage
from finetune_trainer.data.sources import Inputs
from finetune_trainer.runtime.interruption import Interruption
from finetune_trainer.runtime.process import Process
from finetune_trainer.runtime.settings import Settings
from finetune_trainer.session.progress import Reporter
from finetune_trainer.session.run import Run
from finetune_trainer.session.tracking import Trackers


@dataclass(frozen=True)
class Session:
    """The objects that every part of one attempt uses.

    ``abandon`` ends the process from another thread, for a main thread that hangs. ``stop_watching_workers`` lets the
    main process go on although a worker fails.
    """

    settings: Settings
    inputs: Inputs
    output: Storage
    run: Run
    interruption: Interruption
    reporter: Reporter
    trackers: Trackers
    process: Process
    abandon: Callable[[Reason, str], None]
    stop_watching_workers: Callable[[], None]

    @property
    def scratch(self) -> Path:
        """Return the directory for the files of this attempt."""
        return self.settings.scratch / "run"

"""Read the mounted desired state. If the file cannot be read, the last valid desired state stays in force."""

import logging
from pathlib import Path

from pydantic import ValidationError

from finetune_api.limits import quote
from finetune_api.messages import DesiredState

log = logging.getLogger(__name__)


class DesiredFile:
    """The file ``desired.json``, which the kubelet replaces as a whole through a symbolic link."""

    def __init__(self, path: Path) -> None:
        """Create it without a desired state."""
        self._path = path
        self._text: str | None = None
        self._last_warning = ""
        self.state: DesiredState | None = None

    def refresh(self) -> bool:
        """Read the file if it changed; return whether the desired state changed."""
        try:
            text = self._path.read_text(encoding="utf-8")
            if text == self._text:
                return False
            state = DesiredState.model_validate_json(text)
        except (OSError, ValidationError) as error:
            self._warn_once(f"{self._path} cannot be read: {quote(str(error))}; the last desired state stays valid")
            return False
        changed = state != self.state
        self._text, self._last_warning, self.state = text, "", state
        return changed

    def _warn_once(self, text: str) -> None:
        if text != self._last_warning:
            log.warning("%s", text)
            self._last_warning = text

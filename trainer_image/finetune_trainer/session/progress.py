"""Report progress to the operator from a thread that never delays or fails the training."""

import logging
import threading
from pathlib import Path

import httpx

from finetune_api.messages import PROGRESS_PATH, ProgressReport

log = logging.getLogger(__name__)
INTERVAL_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
"""The pause after a report; it doubles with each failure in a row, up to the longest."""


class Reporter:
    """Sends the newest progress report, at most one a second; older ones are dropped."""

    def __init__(self, url: str | None, token_file: Path) -> None:
        """Start the thread that sends.

        Args:
            url: The operator's address; None sends nothing.
            token_file: The service account's token, which the kubelet renews.
        """
        self._url = f"{url.rstrip('/')}{PROGRESS_PATH}" if url else None
        self._token_file = token_file
        self._latest: ProgressReport | None = None
        self._changed = threading.Event()
        self._closing = threading.Event()
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        if self._url:
            self._thread.start()

    def submit(self, report: ProgressReport) -> None:
        """Queue a report, which replaces the one that waits; returns at once."""
        self._latest = report
        self._changed.set()

    def close(self) -> None:
        """Send the last report; wait at most two seconds."""
        self._closing.set()
        self._changed.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2)

    def _run(self) -> None:
        with httpx.Client(timeout=5, trust_env=False) as client:
            while True:
                self._changed.wait()
                closing = self._closing.is_set()
                self._changed.clear()
                if report := self._latest:
                    self._latest = None
                    self._send(client, report)
                if closing:
                    return
                self._closing.wait(min(INTERVAL_SECONDS * 2 ** min(self._failures, 10), LONGEST_PAUSE_SECONDS))

    def _send(self, client: httpx.Client, report: ProgressReport) -> None:
        try:
            # read each time, because the kubelet renews it
            token = self._token_file.read_text(encoding="utf-8").strip()
            headers = {"Authorization": f"Bearer {token}"}
            client.post(str(self._url), json=report.to_json(), headers=headers).raise_for_status()
        except (httpx.HTTPError, OSError) as error:
            if self._failures == 0:
                log.warning("progress could not be reported (%s); training continues", _describe_error(error))
            self._failures += 1
            if self._latest is None:
                self._latest = report
                self._changed.set()
        else:
            self._failures = 0


def _describe_error(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"the operator answered {error.response.status_code}"
    return type(error).__name__

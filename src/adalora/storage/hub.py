"""The hub's client with an end to its patience.

``huggingface_hub`` asks for the commit of a model before anything else and waits for that answer
without limit, and ``datasets`` waits for each of its own for a hundred seconds. A hub (or a proxy)
that takes the connection and falls silent holds a program up for ever, one that answers with errors
for minutes. Here every wait has at most the limit of downloads, ten seconds of silence or
``HF_HUB_DOWNLOAD_TIMEOUT``, and a hub that has only failed for ten seconds counts as switched off
for a minute: what the cache has is taken from there, and the rest is told. A download that goes on,
however slowly, is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from huggingface_hub import constants, get_session
from huggingface_hub.errors import OfflineModeIsEnabled

__all__ = ["limit_waiting"]

#: So many failures in a row, over so many seconds, and the hub is left alone for the last of these.
_FAILURES, _SECONDS, _PAUSE = 4, 10.0, 60.0
_PHASES = ("connect", "read", "write", "pool")


def limit_waiting() -> None:
    """Limit what the client that this process asks the hub with puts up with; once is enough."""
    client: Any = get_session()
    if not isinstance(client.send, _Patience):
        client.send = _Patience(client.send)


class _Patience:
    """Stands before the client's ``send``, which every request goes through."""

    def __init__(self, send: Callable[..., Any]) -> None:
        self._send = send
        self._failures = 0
        self._first = self._last = 0.0

    def __call__(self, request: Any, **kwargs: Any) -> Any:
        if self._failures >= _FAILURES and self._last - self._first >= _SECONDS:
            if time.monotonic() - self._last < _PAUSE:
                # As if HF_HUB_OFFLINE were set, which the libraries answer from the cache.
                raise OfflineModeIsEnabled(
                    f"{constants.ENDPOINT} failed {self._failures} times in a row."
                )
            self._failures = 0
        limit = max(constants.HF_HUB_DOWNLOAD_TIMEOUT, constants.HF_HUB_ETAG_TIMEOUT)
        waits = request.extensions.get("timeout") or {}
        request.extensions["timeout"] = {
            phase: min(waits.get(phase) or limit, limit) for phase in _PHASES
        }
        try:
            response = self._send(request, **kwargs)
        except Exception:
            self._note_failure()
            raise
        if response.status_code >= 500:
            self._note_failure()
        else:
            self._failures = 0
        return response

    def _note_failure(self) -> None:
        self._last = time.monotonic()
        if self._failures == 0:
            self._first = self._last
        self._failures += 1

"""The hub asked with a limit on waiting, so that no command hangs when it is out of reach.

``huggingface_hub`` asks for the commit of a model before anything else and waits for that answer
without limit, and ``datasets`` waits for each of its own for a hundred seconds. A hub (or a proxy)
that takes the connection and falls silent holds a program up for ever, one that answers with errors
for minutes. Here every wait has at most the limit of downloads, ten seconds of silence or
``HF_HUB_DOWNLOAD_TIMEOUT``, and a hub that has only failed for ten seconds counts as switched off
for a minute: what the cache has is taken from there, and the rest is reported. A download that goes
on, however slowly, is waited for.
"""

from __future__ import annotations

import functools
import time
from typing import Any

from huggingface_hub import constants, set_client_factory
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import _http

#: So many failures in a row, over so many seconds, and the hub is left alone for the last of these.
_FAILURES, _SECONDS, _PAUSE = 4, 10.0, 60.0
_PHASES = ("connect", "read", "write", "pool")


@functools.cache
def limit_waiting() -> None:
    """Have this process's clients of the hub limit what they wait for; a second call does nothing.

    A client that the program has set up itself (proxies, certificates) is kept, with the limit.
    """
    # The library hands the factory that is set to nobody, and makes a new client after an error.
    make, breaker = _http._GLOBAL_CLIENT_FACTORY, CircuitBreaker()

    def make_limited() -> Any:
        client: Any = make()
        hooks = client.event_hooks
        client.event_hooks = {
            "request": [*hooks["request"], breaker.before_request],
            "response": [breaker.after_response, *hooks["response"]],
        }
        return client

    set_client_factory(make_limited)


class CircuitBreaker:
    """Event hooks of a client: each request counts as failed until it is answered well."""

    def __init__(self) -> None:
        self._failures = 0
        self._first = self._last = 0.0

    def before_request(self, request: Any) -> None:
        """Limit the waits of ``request``; while the hub is left alone, raise OfflineModeIsEnabled.

        The libraries take it as HF_HUB_OFFLINE, and answer from the cache.
        """
        now = time.monotonic()
        if self._failures >= _FAILURES and self._last - self._first >= _SECONDS:
            if now - self._last < _PAUSE:
                raise OfflineModeIsEnabled(
                    f"{constants.ENDPOINT} failed {self._failures} times in a row."
                )
            self._failures = 0
        self._last = now
        if self._failures == 0:
            self._first = now
        self._failures += 1
        limit = max(constants.HF_HUB_DOWNLOAD_TIMEOUT, constants.HF_HUB_ETAG_TIMEOUT)
        waits = request.extensions.get("timeout") or {}
        request.extensions["timeout"] = {
            phase: min(waits.get(phase) or limit, limit) for phase in _PHASES
        }

    def after_response(self, response: Any) -> None:
        """The hub is well, unless it says that it is not."""
        if response.status_code < 500:
            self._failures = 0

"""A hub that is slow, wrong, broken or silent: a real server on this machine in its place."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import get_session, set_client_factory
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import _http

from adalora.storage import hub as hub_module
from adalora.storage.hub import CircuitBreaker, limit_waiting

CONFIG = b'{"model_type": "bert", "hidden_size": 8}'
#: Owner of the repository that is asked for -> how the server behaves.
PROGRAM = """
import sys, time
import adalora.storage.hub
from huggingface_hub import set_client_factory
from huggingface_hub.utils._http import default_client_factory
from adalora.errors import UserError
from adalora.glue.load import DataSource, load_data
from adalora.pretrained.loading import load_classifier, load_tokenizer

# The pauses between two attempts, which are the library's.
time.sleep = lambda seconds: None
adalora.storage.hub._SECONDS = 0.0
for way in ("silent", "broken", "garbage", "cut", "page", "gone"):
    for what, ask in (
        ("model", lambda: load_classifier(f"{way}/model", num_labels=2)),
        ("tokenizer", lambda: load_tokenizer(f"{way}/model")),
    ):
        started = time.monotonic()
        try:
            ask()
        except UserError as error:
            print(way, what, round(time.monotonic() - started, 1), error, sep="|")
    # Each hub is a new one.
    set_client_factory(default_client_factory)
    adalora.storage.hub.limit_waiting.cache_clear()
load_data.__globals__["HUB_NAME"] = "silent/glue"
started = time.monotonic()
try:
    load_data(DataSource(task_name="rte"))
except UserError as error:
    print("silent", "data", round(time.monotonic() - started, 1), error, sep="|")
"""


class Hub(BaseHTTPRequestHandler):
    """Misbehaves in the way that the owner of the repository asked for is named after."""

    over = threading.Event()

    def do_GET(self) -> None:
        way = next((w for w in WAYS if f"/{w}/" in self.path), "gone")
        getattr(self, way)()

    do_HEAD = do_GET

    def silent(self) -> None:
        self.over.wait(60)
        self.close_connection = True

    def broken(self) -> None:
        self.answer(500, b"")

    def gone(self) -> None:
        self.close_connection = True

    def garbage(self) -> None:
        self.answer(200, os.urandom(300))

    def page(self) -> None:
        self.answer(200, b"<html>Log in to the hotel's network</html>", of_the_hub=False)

    def cut(self) -> None:
        self.answer(200, CONFIG, said=10 * len(CONFIG))
        self.close_connection = True

    def answer(
        self, status: int, body: bytes, *, of_the_hub: bool = True, said: int | None = None
    ) -> None:
        self.send_response(status)
        if of_the_hub:
            self.send_header("ETag", '"abc"')
            self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("Content-Length", str(said or len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""


WAYS = ("silent", "broken", "garbage", "cut", "page")


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    Hub.over.set()
    server.shutdown()


@pytest.mark.slow
def test_however_the_hub_misbehaves_one_sentence_comes_in_bounded_time(
    hub: str, tmp_path: Path
) -> None:
    environment = {
        "PYTHONPATH": ":".join(sys.path),
        "HF_ENDPOINT": hub,
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "0",
        # Ten seconds each, if nothing is said.
        "HF_HUB_DOWNLOAD_TIMEOUT": "1",
        "HF_HUB_ETAG_TIMEOUT": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        cwd=tmp_path,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = {tuple(line.split("|")[:2]): line.split("|")[2:] for line in done.stdout.splitlines()}
    assert len(told) == 13, done.stdout
    for (way, what), (seconds, sentence) in told.items():
        assert float(seconds) < 15, (way, what, seconds)
        if what == "data":
            assert "out of reach or out of order" in sentence
        elif way == "garbage":
            assert "its files are damaged" in sentence
        else:
            assert "the hub cannot be reached or does not answer as it should" in sentence, way


class Clock:
    """In place of the module ``time``."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


def ask(breaker: CircuitBreaker, status: int | None = None) -> dict[str, float]:
    """One request, with the status of its answer, or None where none came; its limits."""
    request = SimpleNamespace(extensions={"timeout": {"read": None, "connect": 0.5}})
    breaker.before_request(request)
    if status is not None:
        breaker.after_response(SimpleNamespace(status_code=status))
    return request.extensions["timeout"]


def test_a_hub_that_only_fails_is_left_alone_for_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, breaker = Clock(), CircuitBreaker()
    monkeypatch.setattr(hub_module, "time", clock)
    for status in (500, None, None, 502):
        ask(breaker, status)
        clock.now += 4
    with pytest.raises(OfflineModeIsEnabled, match="failed 4 times in a row"):
        ask(breaker)
    clock.now += 60
    assert ask(breaker, 200)["connect"] == 0.5
    assert 0 < ask(breaker, 200)["read"] <= 60


@pytest.mark.parametrize(
    ("answers", "pause"),
    [((500, 500, 404, 500, 500), 4), ((None, 500, 500, None, 500), 0.1), ((None, None), 30)],
)
def test_one_answer_a_short_time_or_few_failures_are_no_reason(
    monkeypatch: pytest.MonkeyPatch, answers: Sequence[int | None], pause: float
) -> None:
    clock, breaker = Clock(), CircuitBreaker()
    monkeypatch.setattr(hub_module, "time", clock)
    for status in answers:
        ask(breaker, status)
        clock.now += pause
    clock.now += 20
    ask(breaker)


def test_a_client_that_the_program_has_set_up_is_kept_and_limited_once() -> None:
    before = _http._GLOBAL_CLIENT_FACTORY

    def own() -> Any:
        # The library's own: an earlier test of this process may have left one with a limit.
        client = _http.default_client_factory()
        client.headers["X-Own"] = "proxy"
        return client

    set_client_factory(own)
    limit_waiting.cache_clear()
    try:
        limit_waiting()
        limit_waiting()
        client: Any = get_session()
        assert client.headers["X-Own"] == "proxy"
        hooks = [getattr(one, "__self__", None) for one in client.event_hooks["request"]]
        assert sum(isinstance(one, CircuitBreaker) for one in hooks) == 1
    finally:
        set_client_factory(before)
        limit_waiting.cache_clear()

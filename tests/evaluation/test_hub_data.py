"""Data sets by name, from a local fake hub that serves Parquet files."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest

from gateway.errors import StartupError
from gateway.evaluation.questions.data import HUB_SETS, LoadedData, load
from gateway.local import hub

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

ROWS: dict[str, list[dict[str, Any]]] = {
    "gsm8k": [
        {"question": "Two eggs and three eggs?", "answer": "2 + 3 = <<2+3=5>>5\n#### 5"},
        {"question": "Six pens for $2 each?", "answer": "6 * 2 = 12\n#### 12"},
    ],
    "csqa": [
        {
            "id": "c1",
            "question": "Where do boats lie?",
            "question_concept": "boat",
            "choices": {"label": ["A", "B", "C"], "text": ["harbour", "attic", "oven"]},
            "answerKey": "A",
        }
    ],
}


@contextmanager
def small_hub(files: dict[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(f"{self.command} {self.path}")
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("ETag", f'"{hashlib.sha256(content or b"").hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content or b"")

        do_HEAD = do_GET  # noqa: N815 (the base class's name)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)


def load_from(endpoint: str, name: str, monkeypatch: pytest.MonkeyPatch, cache: Path) -> LoadedData:
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return load(name)


def served(name: str, content: bytes) -> dict[str, bytes]:
    return {f"/datasets/{HUB_SETS[name].repo}/resolve/main/{HUB_SETS[name].file}": content}


def as_parquet(name: str, folder: Path) -> bytes:
    path = folder / "written.parquet"
    parquet.write_table(arrow.Table.from_pylist(ROWS[name]), path)
    return path.read_bytes()


def test_gsm8k_comes_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_hub(served("gsm8k", as_parquet("gsm8k", tmp_path))) as (endpoint, _):
        data = load_from(endpoint, "gsm8k", monkeypatch, tmp_path)
    assert [(one.id, one.answer, one.scorer) for one in data.questions] == [
        ("gsm8k-test-0", "5", "numeric"),
        ("gsm8k-test-1", "12", "numeric"),
    ]
    assert len(data.exemplars) == 8


def test_csqa_comes_from_the_hub_with_its_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_hub(served("csqa", as_parquet("csqa", tmp_path))) as (endpoint, _):
        (question,) = load_from(endpoint, "csqa", monkeypatch, tmp_path).questions
    assert question.id == "c1"
    assert question.text == "Where do boats lie? Answer Choices: (a) harbour (b) attic (c) oven"
    assert (question.answer, question.scorer) == ("a", "choice")


def test_a_cached_file_is_not_downloaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_hub(served("gsm8k", as_parquet("gsm8k", tmp_path))) as (endpoint, requests):
        first = load_from(endpoint, "gsm8k", monkeypatch, tmp_path)
        before = len(requests)
        assert load_from(endpoint, "gsm8k", monkeypatch, tmp_path).questions == first.questions
        assert len(requests) == before
    assert load_from("http://127.0.0.1:1", "gsm8k", monkeypatch, tmp_path).questions == first.questions


@pytest.mark.parametrize("name", HUB_SETS)
def test_a_hub_that_cannot_be_reached_is_one_line_that_names_the_ways_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StartupError) as raised:
        load_from("http://127.0.0.1:1", name, monkeypatch, tmp_path)
    message = raised.value.message
    assert "\n" not in message
    assert message.startswith(f"data set '{name}': the hub is unreachable (")
    assert "--data FILE" in message
    assert "--data generated" in message


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        small_hub(served("gsm8k", b"<html>")) as (endpoint, _),
        pytest.raises(StartupError, match=r"00001\.parquet is not Parquet: delete it"),
    ):
        load_from(endpoint, "gsm8k", monkeypatch, tmp_path)

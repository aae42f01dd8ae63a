"""No request body blocks the event loop: the CPU time of each callback of a running gateway is measured."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import httpx
import pytest

from load_tests.hostile_bodies import ENCODINGS, MAX_BYTES, PLACES, TEXTS, UNITS, list_body, names_body, text_body
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, GatewayProcess, guided, model, running_gateway

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BOUND_MS = 20.0
TRIES = 4
"""A callback counts as slow where each of so many tries is: caches and frequencies of a shared machine vary."""
RANDOM_BODIES = 150

USER = b'[{"role":"user","content":"Why?"}]'
CHAT = {"model": b'"chat"', "messages": USER}
LEAST: dict[str, tuple[str, dict[str, bytes]]] = {
    "chat": ("/v1/chat/completions", CHAT),
    "stream": ("/v1/chat/completions", {**CHAT, "stream": b"true"}),
    "text": ("/v1/completions", {"model": b'"chat"', "prompt": b'"Q: Why?"'}),
    "embeddings": ("/v1/embeddings", {"model": b'"vectors"', "input": b'"Why?"'}),
    "guidance": ("/v1/guidance", CHAT),
    "report": ("/v1/guidance/usage", {"model": b'"chat"', "input_tokens": b"1", "output_tokens": b"1",
                                      "student": b'"phone"', "id": b'"6f1b3f0e-4c1c-4b5e-9d53-2f6d0c7c9a11"'}),
}  # fmt: skip


@pytest.fixture(scope="module")
def gate(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    yield from _timed(redis_url, tmp_path_factory.mktemp("timed"))


def _timed(redis_url: str, folder: Path) -> Iterator[GatewayProcess]:
    matching = guided() | {"when": {"matches": "never there"}}
    with (
        FakeEngine(says("Hi there")).running() as engine,
        running_gateway(
            folder,
            redis_url=redis_url,
            models=[
                model("big", "tgi", engine.url),
                model("small", "openai", f"{engine.url}/v1", continuation="trailing", echo=False),
            ],
            routes=[
                matching,
                guided() | {"quality": {"sample": 1, "compare": "words"}},
                {"model": "vectors", "mode": "embeddings", "student": "small"},
            ],
            tenants={"acme": {"log_content": True, "budget": {"max_budget": 1000000}}},
            entry=("-m", "tests.timed_gateway"),
            environ={"CALLBACK_BOUND_MS": str(BOUND_MS)},
        ) as process,
    ):
        yield process


class Meter:
    """Sends bodies and collects those that block the event loop."""

    def __init__(self, gate: GatewayProcess, caller: httpx.Client) -> None:
        self._gate = gate
        self._caller = caller
        self.slow: dict[str, list[str]] = {}
        self.statuses: set[int] = set()

    def send(self, name: str, path: str, raw: bytes, encoding: str = "identity") -> None:
        sent = ENCODINGS[encoding](raw)
        for _ in range(TRIES):
            if not (found := self._callbacks(path, sent, encoding)):
                return
        self.slow[f"{name} ({len(raw)} bytes, {encoding})"] = found

    def _callbacks(self, path: str, sent: bytes, encoding: str) -> list[str]:
        seen = len(self._gate.log)
        answer = self._caller.post(path, content=sent, headers={"Content-Encoding": encoding})
        self.statuses.add(answer.status_code)
        # A line is written before the reply's last byte leaves; what follows the reply is found by the next request.
        self._caller.get("/v1/models")
        return [
            f"{line['cpu_ms']} ms: {line['callback']}"
            for line in self._gate.log[seen:]
            if line["event"] == "slow_callback"
        ]


@pytest.fixture
def meter(gate: GatewayProcess) -> Iterator[Meter]:
    with httpx.Client(base_url=gate.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as caller:
        yield Meter(gate, caller)
    assert not [line for line in gate.log if line["event"] in {"request_broke", "stream_broke"}]


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", LEAST)
def test_no_list_or_text_blocks_the_event_loop(meter: Meter, kind: str) -> None:
    """Each kind of entry and text, as large as a body may be, and with as many values as one may have."""
    path, least = LEAST[kind]
    place = {"text": "prompt", "embeddings": "input", "report": "x"}.get(kind, "messages")
    for name, unit in UNITS.items():
        for where in {place, "x", "content"} if place == "messages" else {place, "x"}:
            for size in (MAX_BYTES, 1_500_000, 100_000 * (len(unit) + 1) // 3, 250_000):
                body = list_body(least, where, unit, min(size, MAX_BYTES))
                meter.send(f"{kind}: {where} of {name}", path, body, "gzip")
    for name, text in TEXTS.items():
        for where in {place if place != "messages" else "content", "x"}:
            for size in (MAX_BYTES, 250_000):
                meter.send(f"{kind}: {where} of {name}", path, text_body(least, where, text, size))
    for name_bytes in (6, 70, 1000):
        meter.send(f"{kind}: names of {name_bytes}", path, names_body(least, "x", name_bytes, MAX_BYTES), "deflate")
    assert not meter.slow
    assert 200 in meter.statuses or kind == "report"


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_no_random_body_blocks_the_event_loop(meter: Meter) -> None:
    """Any unit in any field, of any size and encoding."""
    draw = random.Random(14)
    for _ in range(RANDOM_BODIES):
        kind, place = draw.choice(list(LEAST)), draw.choice(PLACES)
        path, least = LEAST[kind]
        size = int(MAX_BYTES ** draw.uniform(0.6, 1))
        if draw.random() < 0.7:
            name = draw.choice(list(UNITS))
            body = list_body(least, place, UNITS[name], size)
        else:
            name = draw.choice(list(TEXTS))
            body = text_body(least, place, TEXTS[name], size)
        meter.send(f"{kind}: {place} of {name}", path, body, draw.choice(list(ENCODINGS)))
    assert not meter.slow

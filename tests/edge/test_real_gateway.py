"""A device with a real gateway: both sides report the same facts of an answer."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from gateway.edge import EdgeClient, GatewayRefused, Synced, UrlStudent, VersionRefused, link
from gateway.edge.queue import UsageQueue, UsageReport
from tests.edge.devices import ASKED, NOBODY, facts, text, toy
from tests.engines.toy_servers import ANSWER, LlamaCpp
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, OTHER_KEY, STUDENT_ONLY, GatewayProcess, guided, model, running_gateway
from tests.readiness import wait_until_probed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TEACHERS = "The sky is blue because of how air scatters"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[GatewayProcess]:
    with (
        FakeEngine(says(TEACHERS, "length")).running() as engine,
        running_gateway(
            tmp_path_factory.mktemp("gateway"),
            redis_url=redis_url,
            models=[
                model("big", "tgi", engine.url),
                model("small", "openai", f"{engine.url}/v1", continuation="trailing", echo=False),
            ],
            routes=[guided(stream=True), guided("chat-hint", projection="hint"), STUDENT_ONLY],
        ) as process,
    ):
        wait_until_probed(process.admin_url)
        yield process


def device(gateway: str, student: str, queue: Path, key: str = KEY) -> EdgeClient:
    return EdgeClient(gateway, key=key, student=UrlStudent(f"{student}/v1"), queue=queue)


def receipt(gateway: GatewayProcess, name: str) -> dict[str, Any]:
    """Return a receipt once it is written."""
    give_up = time.monotonic() + 30
    while True:
        reply = httpx.get(f"{gateway.url}/v1/receipts/{name}", headers={"Authorization": f"Bearer {KEY}"})
        if reply.status_code == 200:
            return reply.json()  # type: ignore[no-any-return]
        assert time.monotonic() < give_up, reply.text
        time.sleep(0.05)


async def test_an_answer_is_guided_and_its_receipt_is_closed(gateway: GatewayProcess, tmp_path: Path) -> None:
    with toy(LlamaCpp()) as student:
        async with device(gateway.url, student.url, tmp_path) as edge:
            chunks = [chunk async for chunk in edge.stream({**ASKED, "max_tokens": 40})]
            assert (await edge.sync()).waiting == 0
    receipt_facts = facts(chunks)
    assert receipt_facts["mode"] == "guided"
    assert text(chunks, "teacher")
    assert text(chunks).startswith("The sky is blue because")
    opened = receipt(gateway, receipt_facts["receipt"])
    assert (opened["mode"], opened["edge"]) == ("guidance", "closed")
    closed = receipt(gateway, f"{receipt_facts['receipt']}-edge")
    assert (closed["mode"], closed["edge_of"]) == ("edge", receipt_facts["receipt"])
    assert closed["student"]["output_tokens"] > 0


async def test_a_hint_is_not_shown_and_reaches_the_student(gateway: GatewayProcess, tmp_path: Path) -> None:
    with toy(LlamaCpp()) as student:
        async with device(gateway.url, student.url, tmp_path) as edge:
            chunks = [chunk async for chunk in edge.stream({**ASKED, "model": "chat-hint"})]
    assert facts(chunks)["placement"] == "context"
    assert text(chunks, "teacher") == ""
    assert "Hint: The sky is blue" in student.answers[0]["messages"][-1]["content"]


async def test_a_report_that_is_sent_again_is_known(gateway: GatewayProcess, tmp_path: Path) -> None:
    with toy(LlamaCpp()) as student:
        async with device(gateway.url, student.url, tmp_path / "first") as edge:
            reply = await edge.complete(ASKED)
    name = reply["gkt"]["receipt"]
    receipt(gateway, f"{name}-edge")
    again = UsageQueue(tmp_path / "again")
    async with device(gateway.url, NOBODY, again.folder) as edge:
        again.put(_report(f"/v1/guidance/{name}/usage"))
        assert await edge.sync() == Synced(known=1)
        again.put(_report("/v1/guidance/req_of_nobody/usage"))
        assert await edge.sync() == Synced(refused=1)
    async with device(gateway.url, NOBODY, again.folder, key=OTHER_KEY) as edge:
        again.put(_report(f"/v1/guidance/{name}/usage"))
        assert await edge.sync() == Synced(refused=1)


async def test_offline_answers_are_reported_later(gateway: GatewayProcess, tmp_path: Path) -> None:
    with toy(LlamaCpp()) as student:
        async with device(NOBODY, student.url, tmp_path) as edge:
            reply = await edge.complete({**ASKED, "metadata": {"tags": ["phone"], "user": "ann"}})
    assert reply["choices"][0]["message"]["content"] == ANSWER
    ((_, report),) = UsageQueue(tmp_path).waiting()
    async with device(gateway.url, NOBODY, tmp_path) as edge:
        assert await edge.sync() == Synced(sent=1)
    found = receipt(gateway, f"edge_{report.body['id'].replace('-', '')}")
    assert (found["mode"], found["unguided"], found["tags"]) == ("edge", "offline", ["phone"])
    assert report.body["metadata"] == {"tags": ["phone"]}


async def test_errors_for_unguided_routes_and_old_clients_have_a_remedy(
    gateway: GatewayProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with toy(LlamaCpp()) as student:
        async with device(gateway.url, student.url, tmp_path) as edge:
            with pytest.raises(GatewayRefused, match="gives no guidance") as refused:
                await edge.complete({**ASKED, "model": STUDENT_ONLY["model"]})
        monkeypatch.setattr(link, "EDGE_VERSION", 0)
        async with device(gateway.url, student.url, tmp_path) as edge:
            with pytest.raises(
                VersionRefused, match="version 0 of the edge protocol, and this gateway supports version 1"
            ):
                await edge.complete(ASKED)
    assert refused.value.code == "route_without_guidance"


def _report(path: str) -> UsageReport:
    counts = {"input_tokens": 9, "output_tokens": 3, "finish_reason": "stop", "student": "small"}
    return UsageReport(path, {**counts, "first_token_ms": None, "total_ms": 2, "guided": True, "at": None})

"""Usage reports stored in files, sent later, counted once."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from gateway.edge import EdgeClient, GatewayRefused, Synced, UrlStudent
from gateway.edge.queue import UsageQueue, UsageReport, default_folder
from tests.edge.devices import ASKED, NOBODY, client, toy
from tests.edge.fake_gateway import KEY, FakeGateway
from tests.engines.toy_servers import ANSWER, QUESTION, LlamaCpp
from tests.fakes import served

if TYPE_CHECKING:
    from pathlib import Path

CLOSING: dict[str, Any] = {
    "input_tokens": 9, "output_tokens": 3, "finish_reason": "stop", "student": "small", "first_token_ms": 1,
    "total_ms": 2, "guided": True, "at": 1,
}  # fmt: skip
RECEIPT = "req_000000000000000000000001"


def closing(receipt: str, **more: Any) -> UsageReport:
    return UsageReport(f"/v1/guidance/{receipt}/usage", {**CLOSING, **more})


async def asked_once(gateway: str, student: Any, folder: Path, **more: Any) -> None:
    async with client(gateway, student, folder) as edge, aclosing(edge.stream({**ASKED, **more})) as chunks:
        async for _ in chunks:
            pass


async def synced(gateway: str, folder: Path, key: str = KEY) -> Synced:
    async with EdgeClient(gateway, key=key, student=UrlStudent(f"{NOBODY}/v1"), queue=folder) as edge:
        return await edge.sync()


def test_reports_are_kept_in_order_and_dropped_by_name(tmp_path: Path) -> None:
    kept = UsageQueue(tmp_path / "edge")
    reports = [closing(f"req_{number}") for number in range(3)]
    files = [kept.put(report) for report in reports]
    assert [report for _, report in kept.waiting()] == reports
    kept.drop(files[1])
    kept.drop(files[1])
    assert [file for file, _ in kept.waiting()] == [files[0], files[2]]


def test_the_queue_has_an_end_and_the_newest_stay(tmp_path: Path) -> None:
    kept = UsageQueue(tmp_path, max_reports=2)
    for number in range(4):
        kept.put(closing(f"req_{number}"))
    assert [report.path for _, report in kept.waiting()] == ["/v1/guidance/req_2/usage", "/v1/guidance/req_3/usage"]


def test_a_report_that_cannot_be_stored_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        UsageQueue(tmp_path).put(closing("req_0"))
    assert list(tmp_path.iterdir()) == []


def test_an_unreadable_report_is_dropped_and_blocks_no_other(tmp_path: Path) -> None:
    kept = UsageQueue(tmp_path)
    kept.put(closing("req_0"))
    (tmp_path / "00000000000000000001-aaaaaaaa.json").write_bytes(b"\xff")
    (tmp_path / "00000000000000000002-aaaaaaaa.json").write_text('{"path": "/v1/guidance/usage"}')
    (tmp_path / "00000000000000000003-aaaaaaaa.json").write_text('{"path": "https://elsewhere/v1", "body": {}}')
    assert len(kept.waiting()) == 1
    assert kept.count() == 1


def test_each_gateway_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_folder("https://a.example") != default_folder("https://b.example")
    for alike in ("https://a.example/", "https://a.example/v1", "https://a.example/v1/"):
        assert default_folder(alike) == default_folder("https://a.example")
    assert default_folder("https://a.example").parent == tmp_path / "gkt-edge"


async def test_a_report_is_sent_after_the_answer(tmp_path: Path) -> None:
    gateway = FakeGateway()
    with gateway.running() as url, toy(LlamaCpp()) as student:
        await asked_once(url, student, tmp_path, max_tokens=12)
    sent = gateway.reports[RECEIPT]
    assert {name: sent[name] for name in ("input_tokens", "output_tokens", "finish_reason", "guided", "student")} == {
        "input_tokens": 9, "output_tokens": 7, "finish_reason": "length", "guided": True, "student": "org/model",
    }  # fmt: skip
    assert sent["total_ms"] >= sent["first_token_ms"] >= 0
    assert UsageQueue(tmp_path).count() == 0


async def test_a_rejected_report_is_sent_again_after_the_next_answer(tmp_path: Path) -> None:
    gateway = FakeGateway(closing_fails=503)
    with gateway.running() as url, toy(LlamaCpp()) as student:
        await asked_once(url, student, tmp_path)
        assert gateway.reports == {}
        gateway.closing_fails = None
        await asked_once(url, student, tmp_path)
    assert len(gateway.reports) == 2
    assert UsageQueue(tmp_path).count() == 0


async def test_neither_question_nor_answer_nor_key_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "edge"
    with FakeGateway(closing_fails=503).running() as url, toy(LlamaCpp()) as student:
        await asked_once(url, student, folder)
        await asked_once(NOBODY, student, folder)
    kept = [file.read_text() for file in folder.iterdir()]
    assert len(kept) == 2
    for secret in (QUESTION, *ANSWER.split()[-3:], KEY):
        assert not any(secret in one for one in kept)
    assert folder.stat().st_mode & 0o777 == 0o700


async def test_offline_answers_are_reported_later_and_count_once(tmp_path: Path) -> None:
    with toy(LlamaCpp()) as student:
        await asked_once(NOBODY, student, tmp_path)
    (file, report), *more = UsageQueue(tmp_path).waiting()
    assert more == []
    again = json.loads(file.read_bytes())
    gateway = FakeGateway()
    with gateway.running() as url:
        assert await synced(url, tmp_path) == Synced(sent=1)
        file.write_text(json.dumps(again))  # its reply was lost on the way
        assert await synced(url, tmp_path) == Synced(known=1)
    assert gateway.reports == {report.body["id"]: report.body}
    assert (report.body["model"], report.body["guided"]) == ("chat", False)


async def test_a_report_whose_reply_was_lost_counts_as_sent(tmp_path: Path) -> None:
    gateway = FakeGateway()
    with gateway.running() as url, toy(LlamaCpp()) as student:
        await asked_once(url, student, tmp_path)
        UsageQueue(tmp_path).put(closing(RECEIPT))
        assert await synced(url, tmp_path) == Synced(known=1)
    assert gateway.closings == {RECEIPT: 2}
    assert gateway.reports[RECEIPT]["output_tokens"] != CLOSING["output_tokens"]


@pytest.mark.parametrize(
    ("receipt", "late", "output_tokens"),
    [("req_of_somebody_else", False, 1), (RECEIPT, True, 1), (RECEIPT, False, 10**6)],
    ids=["unknown", "too late", "more than asked for"],
)
async def test_a_permanently_rejected_report_is_dropped(
    receipt: str, late: bool, output_tokens: int, tmp_path: Path
) -> None:
    gateway = FakeGateway(late=late, closing_fails=503)
    with gateway.running() as url, toy(LlamaCpp()) as student:
        await asked_once(url, student, tmp_path / "other", max_tokens=12)
        gateway.closing_fails = None
        UsageQueue(tmp_path).put(closing(receipt, output_tokens=output_tokens))
        assert await synced(url, tmp_path) == Synced(refused=1)
    assert gateway.reports == {}


async def test_with_a_wrong_key_nothing_is_lost(tmp_path: Path) -> None:
    UsageQueue(tmp_path).put(closing(RECEIPT))
    with FakeGateway().running() as url, pytest.raises(GatewayRefused, match="not known"):
        await synced(url, tmp_path, key="gk-another")
    assert UsageQueue(tmp_path).count() == 1


@pytest.mark.parametrize("status", [200, 404, 409])
async def test_a_login_page_takes_no_report(status: int, tmp_path: Path) -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(text="<html>Welcome to the hotel</html>", content_type="text/html", status=status)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", page)
    UsageQueue(tmp_path).put(closing(RECEIPT))
    with served(app) as url:
        found = await synced(url, tmp_path)
    assert (found.sent, found.known, found.refused, found.waiting) == (0, 0, 0, 1)
    assert found.why is not None


async def test_the_number_of_waiting_reports_is_available_offline(tmp_path: Path) -> None:
    UsageQueue(tmp_path).put(closing(RECEIPT))
    found = await synced(NOBODY, tmp_path)
    assert (found.sent, found.waiting) == (0, 1)
    assert found.why is not None

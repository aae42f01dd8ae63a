"""load_tests/edge_link.py and slow_link.py: the measurement itself. The tests check no figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest
import typer

from gateway.edge import UrlStudent
from load_tests import edge_link
from load_tests.edge_link import EDGE, WHOLE, Seen
from load_tests.slow_link import SHAPES, Lane, Shape, SlowLink
from tests.edge.devices import ASKED, toy
from tests.edge.fake_gateway import KEY, FakeGateway
from tests.engines.toy_servers import LlamaCpp

if TYPE_CHECKING:
    from pathlib import Path

FAST = Shape("fast", 10**6, 10**6, 0)


def test_bytes_wait_for_earlier_bytes_and_the_delay() -> None:
    lane = Lane(kbit=8, delay_s=0.5)  # a byte in a millisecond
    assert lane.arrives(10.0, 1000) == pytest.approx(11.5)
    assert lane.arrives(10.2, 500) == pytest.approx(12.0)
    assert lane.arrives(20.0, 500) == pytest.approx(21.0)
    assert lane.bytes == 2000


async def test_the_link_forwards_and_counts_all_bytes() -> None:
    with FakeGateway().running() as url:
        async with SlowLink(url, FAST) as link, httpx.AsyncClient(base_url=link.url) as client:
            reply = await client.post("/v1/guidance", json=ASKED, headers={"Authorization": f"Bearer {KEY}"})
    assert reply.json()["guidance"]["text"] == FakeGateway().text
    assert link.up.bytes > len(reply.request.content)
    assert link.down.bytes > len(reply.content)


async def test_a_devices_answer_includes_its_report_but_no_student_traffic(tmp_path: Path) -> None:
    gateway = FakeGateway()
    with gateway.running() as url, toy(LlamaCpp()) as student:
        async with SlowLink(url, FAST) as link:
            local = UrlStudent(f"{student.url}/v1")
            seen = await edge_link.ask_edge(link, local, KEY, {**ASKED, "max_tokens": 12}, tmp_path)
    assert len(gateway.reports) == 1
    assert (seen.guided, seen.tokens) == (True, 12)
    assert (seen.sent, seen.received) == (link.up.bytes, link.down.bytes)
    assert 0 < seen.first_s <= seen.total_s


async def test_prompts_have_unique_beginnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With equal beginnings, the prompt cache of an engine would favor the last method."""
    prompts: list[str] = []

    async def ask(*call_arguments: Any, stream: bool) -> Seen:
        (body,) = (one for one in call_arguments if isinstance(one, dict))
        prompts.append(body["messages"][0]["content"])
        return Seen(1, 1, 1.0, 1.0, 1, guided=stream)

    for name in ("ask_edge", "ask_teacher"):
        monkeypatch.setattr(edge_link, name, ask)
    with toy(LlamaCpp()) as student:
        asking = edge_link.LinkWorkload(["Why?", "Why not?"], 12)
        seen = await edge_link.measure("http://127.0.0.1:9", student.url, KEY, asking, FAST, tmp_path)
    assert [len(answers) for answers in seen.values()] == [2, 2, 2, 2]
    assert len({one.partition(")")[0] for one in prompts}) == len(prompts) == 8


@pytest.mark.parametrize("links", ["3g,5g", "5g", "", "wifi,"])
def test_an_unknown_link_is_an_error_before_the_measurement(links: str) -> None:
    unknown = next(name for name in links.split(",") if name not in SHAPES)
    with pytest.raises(typer.BadParameter, match=f"there is no '{unknown}'.*3g, 4g, wifi"):
        edge_link.main(links=links)


def test_the_table_has_medians_and_describes_the_links() -> None:
    seen = {"3G": {EDGE: [Seen(700, 900, 1.0, 2.0, 40, True), Seen(900, 1100, 3.0, 4.0, 42, False)]}}
    seen["3G"][WHOLE] = [Seen(400, 1500, 5.0, 5.0, 40, False)]
    figures = {"machine": "One.", "teacher": "t", "student": "s", "m": 40, **edge_link.figures_of(seen)}
    table = edge_link.shown(figures)
    assert "| 3G | edge, streamed | 800 B | 1,000 B | 2.00 s | 3.00 s | 41 | 1 of 2 |" in table
    assert "Links: 3G 0.75/0.25 Mbit/s down/up, 100 ms." in table
    assert list(SHAPES) == ["3g", "4g", "wifi"]

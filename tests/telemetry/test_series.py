"""The number of series is limited, for policy files that change and for any request."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import aiohttp
import pytest
from prometheus_client import values
from prometheus_client.parser import text_string_to_metric_families

from gateway.runtime.fair_share import ANONYMOUS
from gateway.telemetry.metric_files import MULTIPROCESS_FOLDER
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.series import OTHER, SeriesLimit
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, STUDENT_ONLY, model, running_gateway

if TYPE_CHECKING:
    from pathlib import Path

ODD_REQUESTS = 2000


def test_tenants_above_the_limit_share_a_series_and_existing_names_stay() -> None:
    series = SeriesLimit(2)
    labels = [series.tenant(name) for name in ("a", "b", "c", "a", "d", "b")]
    assert labels == ["a", "b", OTHER, "a", OTHER, "b"]
    assert series.route("c", "chat") == OTHER


def test_routes_are_bounded_altogether() -> None:
    series = SeriesLimit(2)
    assert [series.route("a", f"r{n}") for n in range(15)] == [f"r{n}" for n in range(15)]
    assert [series.route("b", f"r{n}") for n in range(6)] == ["r0", "r1", "r2", "r3", "r4", OTHER]
    assert (series.route("b", "r4"), series.route_alone("r14"), series.route_alone("r15")) == ("r4", "r14", OTHER)


def test_changing_tenants_do_not_exceed_the_limit_of_series() -> None:
    metrics = Metrics(max_tenants=10)
    for number in range(1000):
        tenant, route = metrics.series.tenant(f"t{number}"), metrics.series.route(f"t{number}", f"r{number}")
        metrics.requests.labels(tenant, route, "student", "ok").inc()
    (family,) = (one for one in metrics.registry.collect() if one.name == "gkt_requests")
    assert len(family.samples) == 11
    assert sum(sample.value for sample in family.samples) == 1000
    assert (
        metrics.registry.get_sample_value(
            "gkt_requests_total", {"tenant": OTHER, "route": OTHER, "mode": "student", "status": "ok"}
        )
        == 990
    )


def test_requests_without_a_tenant_use_no_tenant_series() -> None:
    metrics = Metrics(max_tenants=1)
    assert [metrics.series.tenant(name) for name in (ANONYMOUS, "a", "b")] == [ANONYMOUS, "a", OTHER]
    assert metrics.registry.get_sample_value("gkt_steps_delayed_total", {"tenant": ANONYMOUS}) == 0


@pytest.fixture
def shared_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(MULTIPROCESS_FOLDER, str(tmp_path))
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    return tmp_path


def test_a_worker_that_is_started_again_counts_those_in_its_files(shared_folder: Path) -> None:
    """A previous worker's series remain, so a new worker must not add as many again."""
    first = Metrics(1, max_tenants=2)
    for tenant in ("a", "b", "c"):
        label = first.series.tenant(tenant)
        first.requests.labels(label, first.series.route(tenant, "chat"), "student", "ok").inc()
    second = Metrics(1, max_tenants=2)
    assert [second.series.tenant(name) for name in ("d", "a", "b")] == [OTHER, "a", "b"]


def test_an_empty_metric_file_does_not_fail_the_scrape(shared_folder: Path) -> None:
    """The file is empty for a moment, or stays empty where the worker was killed. The next worker then uses it."""
    Metrics(1).refused.labels("too_many_requests").inc()
    for name in ("counter_2.db", "gauge_livesum_2.db", "histogram_2.db"):
        (shared_folder / name).touch()
    second = Metrics(2)
    assert b'gkt_refused_total{status="too_many_requests"} 1.0' in second.render()
    second.refused.labels("too_many_requests").inc()
    assert b'gkt_refused_total{status="too_many_requests"} 2.0' in second.render()


def series_of(text: str) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    return {
        (sample.name, frozenset(sample.labels.items()))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.long
async def test_nothing_that_callers_send_makes_a_series(tmp_path: Path, redis_url: str) -> None:
    """Thousands of models, keys, headers, paths and users."""
    with (
        FakeEngine(says("A ship sails.")).running() as engine,
        running_gateway(
            tmp_path,
            models=[model("small", "openai", f"{engine.url}/v1")],
            routes=[STUDENT_ONLY | {"baseline": "small"}],
            redis_url=redis_url,
            redis={"prefix": "series"},
        ) as gateway,
    ):
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as session:

            async def send(odd: str, number: int) -> int:
                headers = {"Authorization": f"Bearer {KEY}", "x-request-id": odd, "X-Client-Request-Id": odd, odd: odd}
                body = {"model": "chat-student", "messages": [{"role": "user", "content": odd}], "user": odd}
                path = "/v1/chat/completions"
                match number % 5:
                    case 0:
                        headers["Authorization"] = f"Bearer {odd}"
                    case 1:
                        body["model"] = odd
                    case 2:
                        path = f"/v1/{odd}"
                    case 3:
                        body |= {"stop": odd, "metadata": {odd: odd}, "stream_options": odd}
                async with session.post(gateway.url + path, json=body, headers=headers) as reply:
                    await reply.read()
                    return reply.status

            async def series() -> set[tuple[str, frozenset[tuple[str, str]]]]:
                async with session.get(f"{gateway.admin_url}/metrics") as reply:
                    return series_of(await reply.text())

            statuses = {await send(f"first-{number}", number) for number in range(5)}
            while gateway.raw_log.count('"event":"request"') < 1:
                await asyncio.sleep(0.01)
            before = await series()
            for start in range(0, ODD_REQUESTS, 50):
                later = await asyncio.gather(*(send(f"odd-{n}", n) for n in range(start, start + 50)))
                assert set(later) == statuses
            after = await series()
    assert len(statuses) == 4
    assert before
    assert after == before
    assert "odd-" not in str(after)

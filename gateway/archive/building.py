"""The archive's parts put together, as the gateway and `gkt-gateway archive` both have them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.archive.archive import Archive
from gateway.archive.archiver import Archiver, Lease
from gateway.archive.feed import ArchiveFeed
from gateway.archive.state import ArchiveBoard
from gateway.archive_address import address_of

if TYPE_CHECKING:
    from gateway.config import Settings
    from gateway.metrics import Metrics
    from gateway.redis_client import RedisClient
    from gateway.redis_keys import RedisKeys


@dataclass(frozen=True, slots=True)
class Archiving:
    """Attributes:
    fills: whether the gateway's own processes fill the archive.
    """

    archive: Archive
    board: ArchiveBoard
    archiver: Archiver
    lease: Lease
    fills: bool

    async def close(self) -> None:
        """Let another process go on, and let go of the database."""
        await self.lease.leave()
        await self.archive.close()


def archive_of(settings: Settings) -> Archive | None:
    """The archive that config.yaml names; None where it says there is none. Raises StartupError, as `Archive` does."""
    url = settings.archive.url
    return None if url is None else Archive(address_of(url.get_secret_value(), settings.data))


def archiving(
    settings: Settings, client: RedisClient, keys: RedisKeys, owner: str, metrics: Metrics
) -> Archiving | None:
    """All of it; None where there is no archive. Raises StartupError, as `Archive` does."""
    archive = archive_of(settings)
    if archive is None:
        return None
    metrics.archive_configured.set(1)
    lease = Lease(client.commands, keys.ledger(), owner)
    board = ArchiveBoard(client.commands, keys.ledger(), metrics, archive.where)
    archiver = Archiver(
        client,
        ArchiveFeed(client.commands, keys),
        archive,
        lease,
        board,
        keep_s=settings.archive.keep_s,
        metrics=metrics,
    )
    return Archiving(archive, board, archiver, lease, fills=settings.archive.run == "gateway")

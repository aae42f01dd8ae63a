"""Lost receipts are counted once where outbox and counts are on different nodes of a real cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import TimeoutError as RedisTimeoutError

from gateway.redis.slots import slot_of
from tests.redis_clients import opened_by_url
from tests.redis_groups import cluster_group
from tests.usage.outboxes import open_outboxes, receipts
from tests.usage.test_trimmer import lost, trimmer

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.long, pytest.mark.timeout(240)]


async def test_lost_receipts_are_counted_once_despite_lost_replies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node of the total stores the counts, and the reply is lost. A later round of any process adds the rest."""
    async with cluster_group() as group:
        with opened_by_url():
            async with open_outboxes(group.url, f"sqlite:///{tmp_path}/usage.db") as outboxes:
                commands, counts = outboxes.client.commands, slot_of(outboxes.keys.ledger_base)
                assert slot_of(outboxes.keys.outbox("acme")) != counts
                await outboxes.settle(*receipts(100))
                ann, bob = trimmer(outboxes, limit=40), trimmer(outboxes, limit=40, process_id="bob")
                execute, replies = commands.execute_command, 0

                async def lose(*args: Any, **options: Any) -> Any:
                    nonlocal replies
                    reply = await execute(*args, **options)  # raises where Redis lacks the script
                    is_script = args[0] == "EVALSHA" and slot_of(args[3]) == counts
                    if is_script or (args[0] == "HINCRBY" and slot_of(args[1]) == counts):
                        replies += 1
                        raise RedisTimeoutError
                    return reply

                with monkeypatch.context() as patch:
                    patch.setattr(commands, "execute_command", lose)
                    for one in (ann, bob):
                        with pytest.raises(RedisTimeoutError):
                            await one.trim()
                assert replies == 2
                for one in (bob, ann, bob):
                    await one.trim()
                assert lost(outboxes) == 60
                await outboxes.settle(*receipts(5))
                assert [await ann.trim(), await bob.trim()] == [5, 0]
                assert lost(outboxes) == 65

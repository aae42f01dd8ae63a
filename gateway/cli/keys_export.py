"""Read what only Redis has for `keys export`, and write it to Redis for `keys import`."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gateway.accounting.budgets import Account, Budgets, Raise
from gateway.accounting.scopes import Scope
from gateway.cli.stores import stores
from gateway.keys.audit import AuditTrail
from gateway.keys.export import KeyExport
from gateway.keys.export_lines import AuditLine, KeyLine, RaiseLine, SwitchLine, read_lines
from gateway.policy.guidance_off import GuidanceScope
from gateway.quality.switches import GuidanceSwitchStore

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gateway.cli.stores import Stores
    from gateway.config.settings import Settings
    from gateway.keys.export_lines import ExportLine

_NOUNS: dict[type[ExportLine], str] = {
    KeyLine: "keys",
    RaiseLine: "raises",
    SwitchLine: "guidance switches",
    AuditLine: "audit entries",
}


async def export(settings: Settings) -> list[ExportLine]:
    """Return the state that only Redis has. Raises RedisError, OSError and StartupError."""
    async with stores(settings) as opened:
        return await _present(opened)


async def _present(opened: Stores) -> list[ExportLine]:
    redis, keys = opened.client.commands, opened.keys
    exported = KeyExport(redis, keys)
    raises = await Budgets(redis, keys).raises()
    switches = await GuidanceSwitchStore(redis, keys).read()
    return [
        *await exported.keys(),
        *(RaiseLine(*owner, raised.usd, raised.until_s) for owner, raised in sorted(raises.items())),
        *(SwitchLine(*scope, off) for scope, off in switches.items()),
        *await exported.audit(),
    ]


@dataclass
class Imported:
    """The result of an import. `different` names the lines that differ from Redis, whose state stays."""

    added: list[ExportLine] = field(default_factory=list)
    present: list[ExportLine] = field(default_factory=list)
    ended: list[ExportLine] = field(default_factory=list)  # raises
    different: list[str] = field(default_factory=list)


async def import_lines(settings: Settings, raw: bytes, file: str, actor: str) -> Imported:
    """Add the lines of an export to Redis. Raises RedisError, OSError and StartupError.

    All lines are checked before the first write. The state that Redis has stays.

    Args:
        raw: the content of the file.
        file: the name of the file for messages.
    """
    lines, found = read_lines(raw, file), Imported()
    async with stores(settings) as opened:
        now_s, _ = await opened.client.commands.time()
        present = {line.name: line for line in await _present(opened)}
        hashes = {line.key.sha256 for line in present.values() if isinstance(line, KeyLine)}
        for number, line in lines:
            held = present.get(line.name)
            if isinstance(line, RaiseLine) and line.until <= now_s:
                found.ended.append(line)
            elif held is None and not (isinstance(line, KeyLine) and line.key.sha256 in hashes):
                found.added.append(line)
            elif held is not None and held.equals(line):
                found.present.append(line)
            else:
                found.different.append(f"{file}:{number}: {line.name} is different in Redis")
        if found.added:
            await _add(opened, found.added, actor)
    return found


async def _add(opened: Stores, lines: Sequence[ExportLine], actor: str) -> None:
    redis, keys = opened.client.commands, opened.keys
    exported, budgets, switches = KeyExport(redis, keys), Budgets(redis, keys), GuidanceSwitchStore(redis, keys)
    trail = AuditTrail(redis, keys.keyring().audit)
    await trail.write(actor=actor, action="keys.import", tenant="", subject="", after=json.dumps(counts(lines)))
    await exported.add_keys([line for line in lines if isinstance(line, KeyLine)])
    for line in lines:
        if isinstance(line, SwitchLine):
            await switches.restore(GuidanceScope(line.tenant, line.route), line.off)
        elif isinstance(line, RaiseLine):
            await budgets.put_raise(Account(line.tenant, Scope(line.scope, 0, 0, 0)), Raise(line.usd, line.until))
    if entries := [line for line in lines if isinstance(line, AuditLine)]:
        await exported.add_audit(entries)


def counts(lines: Iterable[ExportLine]) -> dict[str, int]:
    """Return the number of lines of each type."""
    found = Counter(map(type, lines))
    return {noun: found[kind] for kind, noun in _NOUNS.items()}


def summary(lines: Iterable[ExportLine]) -> str:
    """Return the number of lines of each type in one line."""
    return ", ".join(f"{noun}: {number}" for noun, number in counts(lines).items())

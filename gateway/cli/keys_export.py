"""Read what only Redis has for `keys export`, and write it to Redis for `keys import`."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from gateway.accounting.budgets import Account, Budgets, Raise
from gateway.accounting.scopes import Scope, key_of
from gateway.accounting.token_budgets import TokenBudgets
from gateway.cli.stores import stores
from gateway.cli.tables import counted
from gateway.keys.audit import AuditTrail
from gateway.keys.export import KeyExport
from gateway.keys.export_lines import AuditLine, KeyLine, NumberedLine, RaiseLine, SwitchLine, line_text, read_lines
from gateway.policy.guidance_off import GuidanceScope
from gateway.policy.identities import is_token_key
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


class Exported(NamedTuple):
    """The text of an export, and a summary of its contents."""

    text: str
    summary: str


async def export(settings: Settings) -> Exported:
    """Return the state that only Redis has. Raises RedisError, OSError and StartupError."""
    async with stores(settings) as opened:
        lines = await _present(opened)
    return Exported("".join(f"{line_text(line)}\n" for line in lines), _summary(Counter(map(type, lines))))


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
    """The result of an import. `differing` names the lines that differ from Redis, whose state stays."""

    added: Counter[type[ExportLine]] = field(default_factory=Counter)
    present: Counter[type[ExportLine]] = field(default_factory=Counter)
    expired: int = 0
    differing: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """Return the counts for the operator."""
        lines = [f"Imported: {_summary(self.added)}", f"Already in Redis: {_summary(self.present)}"]
        if self.expired:
            lines.append(f"Omitted: {counted(self.expired, 'raise')} that ended")
        return "\n".join(lines)


async def import_lines(settings: Settings, raw: bytes, file: str, actor: str) -> Imported:
    """Add the lines of an export to Redis. Raises RedisError, OSError and StartupError.

    All lines are checked before the first write. The state that Redis has stays.

    Args:
        raw: the content of the file.
        file: the name of the file for messages.
    """
    lines = read_lines(raw, file)
    async with stores(settings) as opened:
        return await _import(opened, file, lines, actor)


async def _import(opened: Stores, file: str, lines: Iterable[NumberedLine], actor: str) -> Imported:
    result, new = Imported(), dict[str, NumberedLine]()
    now_s, _ = await opened.client.commands.time()
    present = {line.name: line for line in await _present(opened)}
    hashes = {line.sha256 for line in present.values() if isinstance(line, KeyLine)}
    for numbered in lines:
        line, held = numbered.line, present.get(numbered.line.name)
        if isinstance(line, RaiseLine) and line.until <= now_s:
            result.expired += 1
        elif held is None and not (isinstance(line, KeyLine) and line.sha256 in hashes):
            new[line.name] = numbered
        elif held is not None and held.equals(line):
            result.present[type(line)] += 1
        else:
            result.differing.append(_difference(file, numbered))
    if new:
        added = Counter(type(numbered.line) for numbered in new.values())
        what = json.dumps({_NOUNS[kind]: number for kind, number in added.items()})
        trail = AuditTrail(opened.client.commands, opened.keys.keyring().audit)
        await trail.write(actor=actor, action="keys.import", tenant="", subject="", after=what)
        rejected = await _add(opened, [numbered.line for numbered in new.values()])
        result.differing += [_difference(file, new[line.name]) for line in rejected]
        result.added = added - Counter(map(type, rejected))
    return result


async def _add(opened: Stores, lines: Sequence[ExportLine]) -> list[ExportLine]:
    """Write new lines. Return those that another process has written differently in the meantime."""
    redis, keys = opened.client.commands, opened.keys
    exported, budgets, switches = KeyExport(redis, keys), Budgets(redis, keys), GuidanceSwitchStore(redis, keys)
    rejected: list[ExportLine] = [*await exported.add_keys([line for line in lines if isinstance(line, KeyLine)])]
    for line in lines:
        if isinstance(line, RaiseLine):
            key_id = key_of(line.scope)
            if key_id is not None and is_token_key(key_id):
                tenant = line.tenant.partition("#")[0]  # without the number of a slice
                await TokenBudgets(opened.client, keys).keep(tenant, key_id, line.until)
            await budgets.put_raise(Account(line.tenant, Scope(line.scope, 0, 0, 0)), Raise(line.usd, line.until))
        elif isinstance(line, SwitchLine) and not await switches.restore(
            GuidanceScope(line.tenant, line.route), line.off
        ):
            rejected.append(line)
    await exported.add_audit([line for line in lines if isinstance(line, AuditLine)])
    return rejected


def _difference(file: str, numbered: NumberedLine) -> str:
    return f"{file}:{numbered.number}: {numbered.line.name} is different in Redis"


def _summary(counts: Counter[type[ExportLine]]) -> str:
    return ", ".join(f"{noun}: {counts[kind]}" for kind, noun in _NOUNS.items())

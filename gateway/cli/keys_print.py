"""What `gkt-gateway keys` shows: a table of keys, a new key's facts, and the lines of a key for a policy file."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway.config.yaml_source import YamlSource
from gateway.errors import ConfigError, ConfigIssue
from gateway.keys.token import digest_of

if TYPE_CHECKING:
    from collections.abc import Iterable

_PIPE_WIDTH = 200
_SHORT = {"rpm_limit": "rpm", "tpm_limit": "tpm", "max_parallel_requests": "parallel"}
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9._-]*", re.ASCII)
_NO_WORDS = {"true", "false", "yes", "no", "on", "off", "y", "n", "null"}
_COLOURS = {"active": "green", "grace": "yellow"}


def keys_shown(found: Iterable[dict[str, Any]]) -> None:
    """Print a table of keys."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    table = Table("tenant", "id", "key", "status", "expires", "last used", "models", "limits", "budget", box=box.SIMPLE)
    for column in table.columns:
        column.overflow = "fold"
    for key in found:
        table.add_row(
            Text(key["tenant"]),
            Text(key["id"]),
            Text(f"{key['hint']}..." if key["hint"] else "in its file"),
            Text(key["status"], _COLOURS.get(key["status"], "red")),
            Text(_when(key["revoked"] or key["expires"]) or "never"),
            Text(_when(key["last_used"]) or "-"),
            Text(", ".join(key["models"] or ["all"])),
            Text(_limits(key["limits"] or {})),
            Text(_budget(key["budget"] or {})),
        )
    if table.row_count:
        console.print(table)
    else:
        console.print("There are no keys. `gkt-gateway keys create` makes one.")


def key_told(made: dict[str, Any]) -> str:
    """What there is to say of a new key beside the key."""
    until = f"until {_when(made['expires'])}" if made["expires"] else "for ever"
    lines = [f"Key {made['id']} of tenant {made['tenant']}; it holds {until}."]
    if (old := made.get("replaced")) is not None:
        holds = f"holds until {_when(old['expires'])}" if old["status"] == "grace" else "has ended"
        lines.append(f"The old key is called {old['id']} now and {holds}.")
    lines.append("This is the only time that it is shown:")
    return "\n".join(lines)


def yaml_lines(body: dict[str, Any], token: str, now: float) -> str:
    """An entry for `keys:` of a policy file. Raises ConfigError for what could not stand there."""
    from gateway.admin.bodies import NewKey  # here: it imports the server, which no other command for keys needs

    asked, mistakes = YamlSource("", body).check(NewKey)
    if asked is None:
        raise ConfigError([ConfigIssue(_option(one.field), 0, 0, "", one.message, one.suggestion) for one in mistakes])
    lines = [f"id: {_word(asked.id)}", f"sha256: {digest_of(token)}"]
    if asked.expires.in_s is not None:
        lines.append(f"expires: {datetime.fromtimestamp(now + asked.expires.in_s, UTC):%Y-%m-%dT%H:%M:%SZ}")
    elif "expires" in body:
        lines.append(f"expires: {body['expires']}")
    if asked.models is not None:
        lines.append(f"models: [{', '.join(map(_word, asked.models))}]")
    lines += [f"{name}: {_flow(body[name])}" for name in ("limits", "budget") if name in body]
    return "  - " + "\n    ".join(lines)


def _option(field: str) -> str:
    return "--" + field.partition("[")[0].rpartition(".")[2].replace("_", "-")


def _flow(values: dict[str, object]) -> str:
    said = (f"{name}: {str(value).lower() if isinstance(value, bool) else value}" for name, value in values.items())
    return f"{{{', '.join(said)}}}"


def _word(text: str) -> str:
    """In quotes where YAML might take it for something else than text."""
    plain = _PLAIN.fullmatch(text) and text.lower() not in _NO_WORDS
    return text if plain else f'"{text}"'


def _when(moment: str | None) -> str:
    return moment.replace("T", " ").replace("Z", " UTC") if moment else ""


def _limits(limits: dict[str, Any]) -> str:
    return "\n".join(f"{_SHORT[name]} {value}" for name, value in limits.items())


def _budget(budget: dict[str, Any]) -> str:
    return f"{budget['max_budget']} USD / {budget.get('budget_duration', '1mo')}" if budget else ""

"""`gkt-gateway keys export` and `keys import`, from one real Redis prefix to another."""

from __future__ import annotations

import asyncio
import json
import stat
import time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from gateway.accounting.budgets import Raise
from gateway.policy.guidance_off import GuidanceScope
from tests.cli.installation import TENANT, Installation

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def here(tmp_path: Path, redis_url: str) -> Installation:
    return Installation(tmp_path / "here", redis_url)


@pytest.fixture
def there(tmp_path: Path, redis_url: str) -> Installation:
    return Installation(tmp_path / "there", redis_url)


def exported(here: Installation, file: Path) -> list[dict[str, Any]]:
    done = here.keys_run("export", "-o", file)
    assert done.returncode == 0, done
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_an_import_reproduces_keys_raises_switches_and_the_audit_trail(
    here: Installation, there: Installation, tmp_path: Path
) -> None:
    tokens, file = here.fill(), tmp_path / "keys.jsonl"
    before = asyncio.run(here.state())
    lines = exported(here, file)
    assert [line["type"] for line in lines].count("key") == 5
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert not [token for token in tokens if token[6:] in file.read_text()], (
        "of a key, only the six characters of a hint"
    )
    done = there.keys_run("import", file, "--actor", "dave")
    assert done.returncode == 0, done
    assert "Imported: keys: 5, raises: 4, guidance switches: 3, audit entries: 9" in done.stdout
    after = asyncio.run(there.state())
    assert after == before
    assert [key.status(time.time()) for key in after["keys"]] == ["active", "active", "revoked", "active", "grace"]


def test_a_second_import_changes_nothing(here: Installation, there: Installation, tmp_path: Path) -> None:
    here.fill()
    exported(here, tmp_path / "keys.jsonl")
    there.keys_run("import", tmp_path / "keys.jsonl")
    before = exported(there, tmp_path / "first.jsonl")
    done = there.keys_run("import", tmp_path / "keys.jsonl")
    assert done.returncode == 0, done
    assert "Imported: keys: 0, raises: 0, guidance switches: 0, audit entries: 0\n" in done.stdout
    assert "Already in Redis: keys: 5, raises: 4, guidance switches: 3, audit entries: 9" in done.stdout
    assert exported(there, tmp_path / "second.jsonl") == before


def test_what_redis_has_stays_and_is_listed(here: Installation, there: Installation, tmp_path: Path) -> None:
    """A key with another hash, another raise and another switch. All other lines are imported."""
    until_s = int(time.time()) + 3600
    here.fill()
    file = tmp_path / "keys.jsonl"
    lines = exported(here, file)
    asyncio.run(there.create("ci"))
    asyncio.run(there.raise_budget(TENANT, "7", until_s))
    asyncio.run(there.switch_off(GuidanceScope("acme")))
    kept = asyncio.run(there.state())
    done = there.keys_run("import", file)
    numbers = {
        number
        for number, line in enumerate(lines, 1)
        if line.get("key", {}).get("id") == "ci"
        or line.get("scope") == "tenant"
        or (line["type"] == "guidance_off" and line["tenant"] == "acme" and line["route"] is None)
    }
    assert done.returncode == 1
    assert {int(one.split(":")[1]) for one in done.stderr.splitlines() if "different" in one} == numbers
    assert f"{file}:1: key 'ci' of tenant 'acme' is different in Redis" in done.stderr
    assert "Imported: keys: 4, raises: 3, guidance switches: 2" in done.stdout
    after = asyncio.run(there.state())
    assert [key for key in after["keys"] if key.id == "ci"] == kept["keys"]
    assert after["raises"][0] == kept["raises"][0] == Raise(Decimal(7), until_s)
    assert after["switches"][GuidanceScope("acme")] == kept["switches"][GuidanceScope("acme")]


def test_a_key_under_another_name_is_different(here: Installation, there: Installation, tmp_path: Path) -> None:
    here.fill()
    file = tmp_path / "keys.jsonl"
    exported(here, file)
    there.keys_run("import", file)
    lines = file.read_text().splitlines()
    file.write_text(lines[0].replace('"id":"ci"', '"id":"renamed"'))
    done = there.keys_run("import", file)
    assert (done.returncode, "key 'renamed' of tenant 'acme' is different in Redis" in done.stderr) == (1, True)


def test_the_imported_audit_trail_is_sorted_by_time(here: Installation, there: Installation, tmp_path: Path) -> None:
    """Redis has older and newer entries than the file. Later entries follow."""
    asyncio.run(there.create("first"))
    asyncio.run(here.create("second"))
    asyncio.run(there.create("third"))
    exported(here, tmp_path / "keys.jsonl")
    assert there.keys_run("import", tmp_path / "keys.jsonl").returncode == 0
    asyncio.run(there.create("fourth"))
    entries = asyncio.run(there.audit())[::-1]
    assert [entry.subject for entry in entries] == ["first", "second", "third", "fourth"]
    assert [entry.at for entry in entries] == sorted(entry.at for entry in entries)


def test_an_import_is_in_the_audit_trail(here: Installation, there: Installation, tmp_path: Path) -> None:
    asyncio.run(here.create("ci"))
    exported(here, tmp_path / "keys.jsonl")
    there.keys_run("import", tmp_path / "keys.jsonl", "--actor", "dave")
    audit = [line for line in exported(there, tmp_path / "after.jsonl") if line["type"] == "audit"]
    assert [(line["actor"], line["action"]) for line in audit] == [("carol", "key.create"), ("dave", "keys.import")]
    assert json.loads(audit[-1]["after"])["keys"] == 1


def test_a_raise_that_ended_is_omitted(there: Installation, tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    file.write_text('{"type":"raise","tenant":"acme","scope":"tenant","usd":5,"until":1700000000}\n')
    done = there.keys_run("import", file)
    assert (done.returncode, "Omitted: 1 raise that ended" in done.stdout) == (0, True)
    assert exported(there, tmp_path / "after.jsonl") == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "Input data was truncated"),
        ('{"type":"budget"}', "Invalid value 'budget' - at `$.type`"),
        ('{"type":"raise","tenant":"acme","scope":"tenant","usd":5}', "missing required field `until`"),
        ('{"type":"raise","tenant":"acme","scope":"tenant","usd":0,"until":1}', "usd: must be above 0"),
        ('{"type":"raise","tenant":"acme","scope":"chat","usd":5,"until":1}', "at `$.scope`"),
        ('{"type":"audit","id":"0-0"}', "at `$.id`"),
        ('{"type":"guidance_off","tenant":null,"route":"chat","off":{"since_s":1}}', "route: needs a tenant"),
        ("tenant", "key: tenant and replaces must be"),
        ("budget", "max_budget"),
        ("again", "key 'ci' of tenant 'acme' is also in line 1"),
        ("same hash", " is also in line 1. Correct the line, or delete it."),
        ("short hash", "'^[0-9a-f]{64}$' - at `$.key.sha256`. Correct the line, or delete it."),
        ("upper case", "'^[0-9a-f]{64}$' - at `$.key.sha256`"),
        ("expires", "Expected `float` >= 1.0 - at `$.key.expires_s`"),
        ("revoked", "Expected `float` >= 1.0 - at `$.key.revoked_s`"),
    ],
)
def test_an_invalid_line_is_named_and_nothing_is_written(
    here: Installation, there: Installation, tmp_path: Path, line: str, words: str
) -> None:
    asyncio.run(here.create("ci"))
    file = tmp_path / "keys.jsonl"
    exported(here, file)
    first = file.read_text().splitlines()[0]
    other, sha256 = first.replace('"id":"ci"', '"id":"other"'), json.loads(first)["key"]["sha256"]
    known = {
        "budget": other.replace("0.1", "-1"),
        "again": first,
        "same hash": other,
        "short hash": other.replace(sha256, "ab" * 31),
        "upper case": other.replace(sha256, "AB" * 32),
        "expires": other.replace('"expires_s":null', '"expires_s":0'),
        "revoked": other.replace('"revoked_s":null', '"revoked_s":-1.5'),
        "tenant": first.replace('"acme"', '"a|b"'),
    }
    file.write_text(f"{file.read_text()}\n{known.get(line, line)}\n")
    done = there.keys_run("import", file)
    assert done.returncode == 1
    assert f"{file}:4: " in done.stderr
    assert words in done.stderr
    assert "Nothing was imported." in done.stderr
    assert exported(there, tmp_path / "after.jsonl") == []


def test_an_export_replaces_its_file_without_a_copy(here: Installation, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    (folder / "keys.jsonl").write_text("of yesterday")
    asyncio.run(here.create("ci"))
    assert [line["type"] for line in exported(here, folder / "keys.jsonl")] == ["key", "audit"]
    assert list(folder.iterdir()) == [folder / "keys.jsonl"]
    assert stat.S_IMODE((folder / "keys.jsonl").stat().st_mode) == 0o600
    (folder / "taken.jsonl").mkdir()
    done = here.keys_run("export", "-o", folder / "taken.jsonl")
    assert (done.returncode, "taken.jsonl cannot be written: is a directory" in done.stderr) == (1, True)
    assert sorted(folder.iterdir()) == [folder / "keys.jsonl", folder / "taken.jsonl"]


def test_without_a_file_the_export_is_on_standard_output(here: Installation, tmp_path: Path) -> None:
    asyncio.run(here.create("ci"))
    done = here.keys_run("export")
    exported(here, tmp_path / "keys.jsonl")
    assert done.stdout == (tmp_path / "keys.jsonl").read_text()
    assert done.stderr == "keys: 1, raises: 0, guidance switches: 0, audit entries: 1\n"
    assert "cannot be read: No such file" in here.keys_run("import", tmp_path / "missing").stderr

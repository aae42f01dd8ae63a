"""Where clients are installed: what a machine may lack, and what the locks must not say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.clients.environments import HERE, clean_environment, node_modules

if TYPE_CHECKING:
    from pathlib import Path


def test_without_node_the_test_says_in_one_line_that_it_did_not_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Absent, or too old for the package: skipped, with the reason."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match=r"^did not run: it needs node and npm, [^\n]+$"):
        node_modules()
    for name in ("node", "npm"):
        (tmp_path / name).write_text("#!/bin/sh\necho v18.20.1\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(
        pytest.skip.Exception, match=r"^did not run: it needs Node.js 20 or later, and this is v18.20.1$"
    ):
        node_modules()


def test_nothing_of_the_users_own_settings_reaches_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key in the shell must not be sent to a test's gateway, and no address of the user's asked."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "LANGSMITH_API_KEY", "LLM_USER_PATH"):
        monkeypatch.setenv(name, "of-the-user")
    assert "of-the-user" not in clean_environment().values()


def test_what_is_installed_has_its_hash_in_the_lock_and_no_address() -> None:
    """npm takes them from the registry that the machine is set to."""
    lock = (HERE / "node" / "package-lock.json").read_text("utf-8")
    assert lock.count('"node_modules/') == lock.count('"integrity": "sha512-') > 0
    assert '"resolved"' not in lock
    for path in HERE.glob("*.lock"):
        assert "://" not in path.read_text("utf-8")

"""Client environments: missing programs and registries, and the content of the locks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.clients.environments import HERE, clean_environment, node_modules, python_environment

if TYPE_CHECKING:
    from pathlib import Path


def test_without_node_the_test_is_skipped_with_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without Node.js, or with one too old for the package, the test is skipped with a reason."""
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


NPM = """#!/bin/sh
[ "$1" = --version ] && echo v22.0.0 && exit
echo "npm error code {code}" >&2
echo "npm error request to https://packages.example/openai failed" >&2
exit 1
"""


@pytest.mark.parametrize("code", ["ENOTFOUND", "ECONNREFUSED", "SELF_SIGNED_CERT_IN_CHAIN"])
def test_without_the_registry_the_test_is_skipped_with_a_reason(
    code: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The machine has no network, or does not know the registry's certificate."""
    _with_npm(code, monkeypatch, tmp_path)
    with pytest.raises(pytest.skip.Exception, match=rf"^did not run: there is no way to [^\n]+{code}\)$"):
        node_modules()


@pytest.mark.parametrize("code", ["E404", "EINTEGRITY", "EUSAGE"])
def test_a_missing_package_in_the_registry_fails_the_test(
    code: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The registry is reachable, so the lock or the registry is wrong."""
    _with_npm(code, monkeypatch, tmp_path)
    with pytest.raises(pytest.fail.Exception, match=code):
        node_modules()


def _with_npm(code: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Put a recent Node.js and a failing npm on the path."""
    for name in ("node", "npm"):
        (folder / name).write_text(NPM.format(code=code))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))


def test_without_the_python_registry_the_test_is_skipped_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """uv reports the reason as text."""
    for name, value in {
        "XDG_CACHE_HOME": str(tmp_path),
        "UV_CACHE_DIR": str(tmp_path / "uv"),
        "UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple",  # no listener
        "UV_HTTP_RETRIES": "0",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(pytest.skip.Exception, match=r"^did not run: there is no way to [^\n]+$"):
        python_environment("llm")


def test_nothing_of_the_users_own_settings_reaches_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test must not send the shell's key to its gateway or call the user's own addresses."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "LANGSMITH_API_KEY", "LLM_USER_PATH"):
        monkeypatch.setenv(name, "of-the-user")
    assert "of-the-user" not in clean_environment().values()


def test_the_lock_has_a_hash_and_no_address_of_each_package() -> None:
    """npm downloads the packages from the machine's configured registry."""
    for client in ("node", "codex", "claude_code", "oidc_provider"):
        lock = (HERE / client / "package-lock.json").read_text("utf-8")
        assert lock.count('"node_modules/') == lock.count('"integrity": "sha512-') > 0
        assert '"resolved"' not in lock
    for path in HERE.glob("*.lock"):
        assert "://" not in path.read_text("utf-8")

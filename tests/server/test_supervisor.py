"""The supervisor checks its requirements before it starts workers."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from gateway.errors import StartupError
from gateway.server.supervisor import _shared_folder


def test_the_folder_of_the_metrics_is_gone_in_the_end() -> None:
    with _shared_folder() as folder:
        (Path(folder) / "counter_1.db").write_bytes(b"1")
    assert not Path(folder).exists()


def test_without_a_writable_folder_the_error_has_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(StartupError, match="TMPDIR"), _shared_folder():
        pytest.fail("made")

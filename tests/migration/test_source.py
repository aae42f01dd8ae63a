"""A LiteLLM proxy configuration is read with the line of each value, and a file that is not valid is an error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gateway.errors import ConfigError
from gateway.migration.source import SourceKeys, read_litellm

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "main.yaml: cannot be read: no such file"),
        ("a: 1\n b: 2\n", "main.yaml:2: not valid YAML"),
        ("- a\n", "main.yaml:1: must hold keys"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error_with_its_line(folder: Path, text: str | None, message: str) -> None:
    if text is not None:
        (folder / "main.yaml").write_text(text)
    with pytest.raises(ConfigError) as raised:
        read_litellm(folder / "main.yaml")
    assert str(raised.value).startswith(message)


def test_a_duplicate_key_is_an_issue_and_the_last_one_counts(folder: Path) -> None:
    (folder / "main.yaml").write_text("general_settings:\n  master_key: a\n  master_key: b\n")
    file = read_litellm(folder / "main.yaml")
    found = SourceKeys(file.keys.take("general_settings")).take("master_key")
    assert found is not None
    assert found.value == "b"
    assert [one.line for one in file.issues] == [3]


def test_a_section_that_is_no_mapping_is_an_error(folder: Path) -> None:
    (folder / "main.yaml").write_text("model_list: []\nrouter_settings: [a]\n")
    with pytest.raises(ConfigError, match=r"main\.yaml:2: router_settings: must hold keys"):
        SourceKeys(read_litellm(folder / "main.yaml").keys.take("router_settings"))

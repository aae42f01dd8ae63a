"""Included files are merged as LiteLLM merges them, and each value has the line of its own file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gateway.errors import ConfigError
from gateway.migration.source import read_litellm

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_lists_are_extended_and_other_values_replaced(folder: Path) -> None:
    (folder / "more").mkdir()
    (folder / "main.yaml").write_text(
        "include: [more/models.yaml]\nmodel_list: [{model_name: a}]\nrouter_settings: {num_retries: 1, timeout: 2}\n"
    )
    (folder / "more" / "models.yaml").write_text(
        "# models\nmodel_list:\n  - {model_name: b}\nrouter_settings: {num_retries: 3}\ninclude: [last.yaml]\n"
    )
    (folder / "more" / "last.yaml").write_text("include: [../main.yaml]\nmodel_list: [{model_name: c}]\n")
    file = read_litellm(folder / "main.yaml")
    issues = [str(one.issue("x")) for one in file.entries("model_list")]
    assert issues == [
        "main.yaml:2: model_list[0]: x",
        "more/models.yaml:3: model_list[0]: x",
        "more/last.yaml:2: model_list[0]: x",
    ]
    router = file.section("router_settings")
    assert [(one.name, one.value) for one in router.rest()] == [("num_retries", 3)]
    assert [str(one).partition(": not")[0] for one in file.notices] == ["main.yaml:3: router_settings"]


def test_a_file_beside_the_first_one_is_found_too(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "main.yaml").write_text("include: [sub/one.yaml]\n")
    (folder / "sub" / "one.yaml").write_text("include: [two.yaml]\n")
    (folder / "two.yaml").write_text("model_list: [{model_name: a}]\n")
    assert len(read_litellm(folder / "main.yaml").entries("model_list")) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "model_list: []\ninclude:\n  - none.yaml\n",
            "main.yaml:3: include[0]: none.yaml cannot be read: no such file",
        ),
        ("include: none.yaml\n", "main.yaml:1: include: must be a list of paths"),
        ("include: [1]\n", "main.yaml:1: include: must be a list of paths"),
        ("include: [bad.yaml]\n", "bad.yaml:2: not valid YAML"),
        ("a: 1\n b: 2\n", "main.yaml:2: not valid YAML"),
        ("- a\n", "main.yaml:1: must hold keys"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error_with_its_line(folder: Path, text: str, message: str) -> None:
    (folder / "bad.yaml").write_text("a: [\n")
    (folder / "main.yaml").write_text(text)
    with pytest.raises(ConfigError) as raised:
        read_litellm(folder / "main.yaml")
    assert str(raised.value).startswith(message)


def test_a_duplicate_key_is_a_notice_and_the_last_one_counts(folder: Path) -> None:
    (folder / "main.yaml").write_text("general_settings:\n  master_key: a\n  master_key: b\n")
    file = read_litellm(folder / "main.yaml")
    found = file.section("general_settings").take("master_key")
    assert found is not None
    assert found.value == "b"
    assert [one.line for one in file.notices] == [3]


def test_a_section_that_is_no_mapping_is_an_error(folder: Path) -> None:
    (folder / "main.yaml").write_text("model_list: []\nrouter_settings: [a]\n")
    with pytest.raises(ConfigError, match=r"main\.yaml:2: router_settings: must hold keys"):
        read_litellm(folder / "main.yaml").section("router_settings")

"""Issues of an invalid file: all together, in file order, each with its line and a remedy."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from gateway.config.scalars import Flag, InvalidValue, Number
from gateway.config.yaml_messages import model_at
from gateway.config.yaml_source import StrictModel, load, read
from gateway.errors import ConfigIssue


class Part(StrictModel):
    port: Annotated[int, Field(strict=True, ge=1, le=9)] = 1
    wait_s: Number = Field(1.0, alias="wait")
    on: Flag = True


class Whole(StrictModel):
    protocol: Literal["tgi", "openai"] = "tgi"
    name: Annotated[str, Field(min_length=1, max_length=5)] = "x"
    part: Part = Part()
    parts: Annotated[tuple[Part, ...], Field(min_length=1, max_length=2)] = (Part(),)
    maybe: Part | None = None
    key_hints: ClassVar[Mapping[str, str]] = {"model_list": "here it is called parts"}


class Needy(StrictModel):
    protocol: str
    port: int


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is also the working one, so that names are shown as a person there writes them."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def issues_of(folder: Path, text: str, model: type[StrictModel] = Whole) -> list[str]:
    file = folder / "config.yaml"
    file.write_text(text)
    value, found_issues = load(file, model)
    assert (value is None) == bool(found_issues)
    return [str(one_issue).removeprefix("config.yaml:") for one_issue in found_issues]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("protocl: tgi\n", ["1: protocl: unknown key. Did you mean 'protocol'?"]),
        ("\n\nparts:\n  - prt: 1\n", ["4: parts[0].prt: unknown key. Did you mean 'port'?"]),
        ("maybe: {prt: 1}\n", ["1: maybe.prt: unknown key. Did you mean 'port'?"]),
        ("part: {zzz: 1}\n", ["1: part.zzz: unknown key; known here: port, wait, on"]),
        ("part: {wait_s: 1}\n", ["1: part.wait_s: unknown key. Did you mean 'wait'?"]),
        ("model_list: []\n", ["1: model_list: unknown key: here it is called parts"]),
        ("1: 2\n", ["1: 1: unknown key; known here: protocol, name, part, parts, maybe"]),
        ("protocol: tig\n", ["1: protocol: must be tgi or openai. Did you mean 'tgi'?"]),
        ("protocol: [tgi]\n", ["1: protocol: must be tgi or openai"]),
        ("name: 3\n", ["1: name: must be text: put it in quotes"]),
        ("name: true\n", ["1: name: must be text: put it in quotes"]),
        ("name: [a]\n", ["1: name: must be text"]),
        ("name: ''\n", ["1: name: must not be empty"]),
        ("name: abcdef\n", ["1: name: must have at most 5 characters"]),
        ("name:\n", ["1: name: empty: write a value, or remove the line"]),
        ("part:\n", ["1: part: empty: write a value, or remove the line"]),
        ("part: {on: yes}\n", ["1: part.on: must be true or false. Did you mean 'true'?"]),
        ("part: {on: 0}\n", ["1: part.on: must be true or false. Did you mean 'false'?"]),
        ("part: {on: maybe}\n", ["1: part.on: must be true or false"]),
        ("part:\n  port: 10\n", ["2: part.port: must be at most 9"]),
        ("part:\n  port: 0\n", ["2: part.port: must be at least 1"]),
        ("part:\n  port: '8'\n", ["2: part.port: must be a whole number, without quotes"]),
        ("part:\n  port: true\n", ["2: part.port: must be a whole number, without quotes"]),
        ("part:\n  port: 8.0\n", ["2: part.port: must be a whole number, without quotes"]),
        ("part: 3\n", ["1: part: must hold keys, one per line, each as 'key: value'"]),
        ("parts: 3\n", ["1: parts: must be a list: one '- ...' per entry"]),
        ("parts: {}\n", ["1: parts: must be a list: one '- ...' per entry"]),
        ("parts: []\n", ["1: parts: must have at least 1 entry"]),
        ("parts: [{}, {}, {}]\n", ["1: parts: must have at most 2 entries"]),
        ("name: a\nname: b\n", ["2: name: set twice, first on line 1: keep one"]),
        ("part: {port: 1, port: 2}\n", ["1: part.port: set twice, first on line 1: keep one"]),
        ("name: !secret a\n", ["1: name: YAML tags ('!...') are not supported: remove it"]),
        ("part: &a {port: 1, wait: *a}\n", ["1: part.wait: refers to itself"]),
        ("? [a, b]\n: 1\n", ["1: a key must be one plain word"]),
    ],
)
def test_an_issue_names_its_line_field_and_remedy(folder: Path, text: str, lines: list[str]) -> None:
    assert issues_of(folder, text) == lines


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [1,\nb: 2\n", "3: not valid YAML: expected ',' or ']', but got the end of the file"),
        (" a: 1\nb: 2\n", "2: not valid YAML: a line that is indented more or less than its neighbors"),
        (
            "name: a: b\n",
            (
                "1: not valid YAML: a second ': ' on one line, or wrong indentation; "
                "put quotes around a value that contains ': '"
            ),
        ),
        ("a:\n  - name big\n    b: 1\n", "2: not valid YAML: a line without 'key: value'; add the ':'"),
        ("part:\n\tport: 1\n", "2: not valid YAML: a tab instead of spaces"),
        ("name: a\n---\nname: b\n", "2: not valid YAML: a second document ('---'); a file may have only one"),
        ("name: *nope\n", "1: not valid YAML: found undefined alias 'nope'"),
        ("- a\n", "1: must hold keys, one per line, each as 'key: value'"),
        ("just words\n", "1: must hold keys, one per line, each as 'key: value'"),
    ],
)
def test_invalid_yaml_is_one_issue_at_its_line(folder: Path, text: str, line: str) -> None:
    assert issues_of(folder, text) == [line]


def test_all_issues_are_reported_together_in_file_order(folder: Path) -> None:
    text = "parts:\n  - {port: 99}\n  - {prt: 1, on: 2}\nprotocol: x\nname: 1\nname: ok\n"
    assert [line.split(":")[0] for line in issues_of(folder, text)] == ["2", "3", "3", "4", "6"]


def test_a_list_whose_entries_are_all_wrong_is_not_called_empty(folder: Path) -> None:
    assert issues_of(folder, "parts: [{port: 99}]\n") == ["1: parts[0].port: must be at most 9"]


def test_a_missing_field_is_reported_once_and_not_if_misspelled(folder: Path) -> None:
    assert issues_of(folder, "", Needy) == ["1: protocol: missing: add it", "1: port: missing: add it"]
    assert issues_of(folder, "protocl: x\n", Needy) == [
        "1: port: missing: add it",
        "1: protocl: unknown key. Did you mean 'protocol'?",
    ]


def test_an_empty_file_is_all_defaults(folder: Path) -> None:
    assert issues_of(folder, "# nothing\n") == []


@pytest.mark.long
def test_an_unreadable_file_is_an_issue_of_the_whole_file(folder: Path) -> None:
    assert [str(one) for one in load(folder / "no.yaml", Whole)[1]] == [
        "no.yaml: cannot be read: no such file or directory"
    ]
    (folder / "latin.yaml").write_bytes(b"name: a\nprotocol: \xe9\n")
    assert [str(one) for one in load(folder / "latin.yaml", Whole)[1]] == [
        "latin.yaml:2: not UTF-8 text: save the file as UTF-8"
    ]
    (folder / "deep.yaml").write_text("[" * 5000)
    assert [str(one) for one in load(folder / "deep.yaml", Whole)[1]] == ["deep.yaml: nested too deeply"]
    (folder / "bell.yaml").write_text("name: \x07\n")
    assert [str(one) for one in load(folder / "bell.yaml", Whole)[1]] == [
        "bell.yaml: not valid YAML: a character that YAML does not allow"
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.10", Decimal("0.10")),
        ("1_000.5", Decimal("1000.5")),
        ("1e-6", Decimal("1e-6")),
        (".inf", Decimal("inf")),
        ("-.INF", Decimal("-inf")),
        ("0x10", 16),
        ("017", 17),
        ("1_000", 1000),
        ("'1'", "1"),
        ("yes", "yes"),
        ("2027-01-01", "2027-01-01"),
        ("TRUE", True),
        ("~", None),
        ("=", "="),
    ],
)
def test_scalars_are_read_as_written(folder: Path, text: str, value: object) -> None:
    (folder / "a.yaml").write_text(f"a: {text}\n")
    source, found_issues = read(folder / "a.yaml")
    assert source is not None
    assert not found_issues
    assert repr(source.get("a")) == repr(value)


def test_explicit_keys_override_merged_ones(folder: Path) -> None:
    (folder / "a.yaml").write_text("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3\n")
    source, _ = read(folder / "a.yaml")
    assert source is not None
    assert source.get("b") == {"x": 1, "y": 3}
    assert str(source.issue(("b", "x"), "no")) == "a.yaml:1: b.x: no"
    assert str(source.issue(("b", "y"), "no")) == "a.yaml:4: b.y: no"


def test_a_cross_check_has_the_nearest_line_in_the_file(folder: Path) -> None:
    (folder / "a.yaml").write_text("name: x\nroutes:\n  - model: a\n  - model: b\n    teacher: big\n")
    source, _ = read(folder / "a.yaml")
    assert source is not None
    assert source.issue(("routes", 1, "teacher"), "no") == ConfigIssue("a.yaml", 5, 5, "routes[1].teacher", "no")
    assert source.issue(("routes", 1, "student"), "no") == ConfigIssue("a.yaml", 4, 5, "routes[1].student", "no")
    assert source.issue(("routes", 7), "no").line == 2
    assert source.issue(("nothing",), "no").line == 1


def test_a_value_of_the_environment_is_blamed_on_its_variable(folder: Path) -> None:
    (folder / "a.yaml").write_text("part: {port: 1}\n")
    source, _ = read(folder / "a.yaml")
    assert source is not None
    source.override(("part", "port"), 99, "THE_PORT")
    source.override(("part", "on"), "x", "THE_SWITCH")
    assert [str(one) for one in source.check(Whole)[1]] == [
        "environment: THE_PORT: must be at most 9",
        "environment: THE_SWITCH: must be true or false",
    ]


def test_an_override_does_not_reach_through_an_alias(folder: Path) -> None:
    (folder / "a.yaml").write_text("part: &a {port: 1}\nmaybe: *a\n")
    source, _ = read(folder / "a.yaml")
    assert source is not None
    source.override(("part", "port"), 5, "THE_PORT")
    assert (source.get("part", "port"), source.get("maybe", "port")) == (5, 1)


def test_an_override_leaves_a_section_that_is_no_section_to_the_validator(folder: Path) -> None:
    (folder / "a.yaml").write_text("part: 3\n")
    source, _ = read(folder / "a.yaml")
    assert source is not None
    source.override(("part", "port"), 5, "THE_PORT")
    assert [str(one) for one in source.check(Whole)[1]] == [
        "a.yaml:1: part: must hold keys, one per line, each as 'key: value'"
    ]


def test_the_shape_of_an_unknown_place_is_unknown() -> None:
    assert model_at(Whole, ()) is Whole
    assert model_at(Whole, ("parts", 3)) is Part
    assert model_at(Whole, ("maybe",)) is Part
    assert model_at(Whole, ("name",)) is None
    assert model_at(Whole, ("nothing", 0, "x")) is None


def test_a_suggestion_travels_with_our_own_errors() -> None:
    assert InvalidValue("no", "yes").suggestion == "yes"


SCALARS = st.sampled_from(
    [
        "",
        "~",
        "[]",
        "{}",
        "[1]",
        "!x y",
        "*a",
        "&a 1",
        "&a [*a]",
        "{<<: 1}",
        "{[a]: b}",
        ".nan",
        "1e999999",
        "\x07",
        "\t",
    ]
)


@given(
    st.lists(st.tuples(st.sampled_from(["name", "part", "parts", "maybe", "<<", "- x"]), SCALARS | st.text(max_size=9)))
)
def test_the_reader_raises_no_other_error_for_any_text(lines: list[tuple[str, str]]) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "a.yaml"
        file.write_text("".join(f"{key}: {value}\n" for key, value in lines), encoding="utf-8", errors="replace")
        value, found_issues = load(file, Whole)
    assert (value is None) == bool(found_issues)

"""Scalars carry their unit, money is exact, and no secret is ever shown."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from gateway.config.scalars import (
    Duration,
    HttpBase,
    Name,
    Number,
    Rate,
    Secret,
    SecretOrText,
    Size,
    Usd,
    ValueOrigin,
    duration_between,
    duration_s,
    size_between,
    size_bytes,
)
from gateway.config.yaml_source import StrictModel


class Box(StrictModel):
    duration: Duration = 1.0
    bounded: Annotated[Duration, duration_between("10ms", "1m")] = 1.0
    size: Size = 1
    bounded_size: Annotated[Size, size_between("1kB", "1MB")] = 1000
    usd: Usd = Decimal(1)
    rate: Rate = Decimal(1)
    number: Number = 1.0
    secret: Secret | None = None
    address: SecretOrText | None = None
    name: Name = "x"
    base: HttpBase = "http://x"


def from_yaml(field: str, value: object, **environ: str) -> Any:
    box = Box.model_validate({field: value}, context=ValueOrigin(environ, Path("/nowhere")))
    return getattr(box, field)


def refusal(field: str, value: object, **environ: str) -> str:
    with pytest.raises(ValidationError) as caught:
        from_yaml(field, value, **environ)
    text = str(caught.value)
    assert "input_value" not in text
    return str(caught.value.errors()[0]["ctx"]["error"])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("30s", 30), ("5m", 300), ("1h", 3600), ("1d", 86400), ("0s", 0), ("1.5s", 1.5), ("2 s", 2)],
)
def test_a_duration_is_read_as_seconds(text: str, seconds: float) -> None:
    assert from_yaml("duration", text) == seconds


@given(st.integers(0, 10**6))
def test_milliseconds_are_the_nearest_float_of_their_seconds(count: int) -> None:
    assert duration_s(f"{count}ms") == count / 1000


@pytest.mark.parametrize(
    "value", ["30", "s", "30 sec", "-1s", "1e3s", "1h30m", "30S", "", " 30s", "\uff13s", True, None, []]
)
def test_an_invalid_duration_is_an_error_with_an_example(value: object) -> None:
    assert refusal("duration", value) == "must be a duration: a number with ms, s, m, h or d, like 250ms or 30s"


@pytest.mark.parametrize("value", [30, Decimal("0.5")])
def test_a_duration_without_a_unit_is_an_error(value: object) -> None:
    assert refusal("duration", value) == (
        f"a duration needs its unit (ms, s, m, h, d): write {value}s if you mean seconds"
    )


def test_a_duration_out_of_range_is_an_error_with_the_range() -> None:
    assert refusal("bounded", "2m") == "must be between 10ms and 1m"
    assert from_yaml("bounded", "10ms") == 0.01


@pytest.mark.parametrize(
    ("text", "size"),
    [("8MB", 8_000_000), ("512kB", 512_000), ("8MiB", 8 * 2**20), ("1.5KiB", 1536), ("0B", 0), ("1gb", 10**9)],
)
def test_a_size_is_read_as_bytes(text: str, size: int) -> None:
    assert from_yaml("size", text) == size


def test_an_invalid_size_is_an_error_with_an_example() -> None:
    how = "must be a size: a number with B, kB, MB, GB, KiB, MiB or GiB, like 8MB"
    assert [refusal("size", value) for value in ("8", "8TB", "-1B", True, Decimal("1.5"))] == [how] * 5
    assert refusal("size", 8) == "a size needs its unit (B, kB, MB, GB, KiB, MiB, GiB): write 8B if you mean bytes"
    assert refusal("size", "1.5B") == "must be a whole number of bytes"
    assert refusal("bounded_size", "2MB") == "must be between 1kB and 1MB"


@given(st.integers(0, 2**40))
def test_bytes_are_read_back(count: int) -> None:
    assert size_bytes(f"{count}B") == count


@given(st.decimals(0, 1_000_000, places=9))
def test_money_is_exactly_what_was_written(amount: Decimal) -> None:
    kept = from_yaml("usd", amount)
    assert isinstance(kept, Decimal)
    assert str(kept) == str(amount)


@pytest.mark.parametrize("value", [0.9, "0.90", True, None, Decimal("nan"), Decimal("inf")])
def test_an_inexact_amount_is_rejected(value: object) -> None:
    assert refusal("usd", value) == "must be an amount in USD: a number without quotes, like 0.90"


def test_money_and_rates_have_a_range() -> None:
    assert refusal("usd", -1) == "must be between 0 and 1000000 USD"
    assert refusal("usd", 1_000_001) == "must be between 0 and 1000000 USD"
    assert refusal("usd", Decimal("0." + "1" * 25)) == "must have at most 24 digits"
    assert refusal("usd", Decimal("1e-999999")) == "must have at most 24 digits"
    assert from_yaml("usd", 0) == 0
    assert refusal("rate", 0) == "must be more than 0 and at most 1000000000"
    assert refusal("rate", "9000") == "must be a number, without quotes, like 9000"


def test_a_number_is_a_number() -> None:
    assert from_yaml("number", Decimal("0.7")) == 0.7
    assert from_yaml("number", 1) == 1.0
    for value in (True, "1", None, Decimal("nan"), Decimal("inf"), 10**400):
        assert refusal("number", value) == "must be a number, without quotes"


@pytest.mark.parametrize("reference", ["env:KEY", "os.environ/KEY"])
def test_a_secret_comes_from_the_environment(reference: str) -> None:
    assert from_yaml("secret", reference, KEY=" s3cret\n").get_secret_value() == "s3cret"


def test_a_secret_comes_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("s3cret\n")
    for reference in (f"file:{tmp_path}/key", "file:key"):
        box = Box.model_validate({"secret": reference}, context=ValueOrigin({}, tmp_path))
        assert box.secret is not None
        assert box.secret.get_secret_value() == "s3cret"


@pytest.mark.parametrize(
    ("value", "environ", "message"),
    [
        ("s3cret", {}, "a secret must not be written in this file: write env:NAME or file:/path"),
        ("env:KEY", {}, "the environment variable KEY is not set: set it, or correct the name"),
        ("env:KEY", {"KEY": " "}, "the environment variable KEY is empty"),
        ("env:", {}, "must name an environment variable, like env:TEACHER_KEY"),
        ("env:s3cret!", {}, "must name an environment variable, like env:TEACHER_KEY"),
        (
            "env:KEY",
            {"KEY": "s3\ncret"},
            "the secret contains a space or another character that is not allowed in a header",
        ),
        (
            "env:KEY",
            {"KEY": "s3crét"},
            "the secret contains a space or another character that is not allowed in a header",
        ),
        ("file:/none", {}, "cannot read /none: no such file or directory"),
        ("file:/dev/null", {}, "/dev/null is empty"),
        (12345, {}, "must be a reference to a secret: env:NAME or file:/path"),
    ],
)
def test_a_missing_secret_is_reported_without_its_value(value: object, environ: dict[str, str], message: str) -> None:
    assert refusal("secret", value, **environ) == message
    assert "s3" not in message


def test_a_secret_is_never_shown() -> None:
    box = Box.model_validate(
        {"secret": "env:KEY", "address": "redis://:s3cret@h"}, context=ValueOrigin({"KEY": "s3cret"}, Path())
    )
    assert "s3cret" not in f"{box!r} {box} {box.model_dump()} {box.model_dump_json()}"


def test_an_address_that_may_hold_a_password_is_text_or_a_reference() -> None:
    assert from_yaml("address", "redis://h").get_secret_value() == "redis://h"
    assert from_yaml("address", "env:URL", URL="redis://:p@h").get_secret_value() == "redis://:p@h"
    assert refusal("address", 3) == "must be text, or a reference: env:NAME or file:/path"


def test_python_code_gives_plain_values() -> None:
    box = Box(duration=2, size=5, secret=SecretStr("x"), address=SecretStr("redis://h"))
    assert (box.duration, box.size) == (2.0, 5)
    assert box.secret == SecretStr("x")


@pytest.mark.parametrize("value", ["a", "Qwen/Qwen2.5-7B_x:latest", "a" * 128])
def test_a_name_may_contain_the_characters_of_model_names(value: str) -> None:
    assert from_yaml("name", value) == value


@pytest.mark.parametrize("value", ["", "a b", "é", "a" * 129, "a\n", "{a}"])
def test_a_name_holds_nothing_else(value: str) -> None:
    assert refusal("name", value) == "must be 1 to 128 letters, digits or any of . _ : / -"


_NOT_SPELLED = "must not contain a space or a control character: write it like http://host:8080"


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("http://h:8080", "http://h:8080"),
        ("https://h/v1/", "https://h/v1"),
        ("http://[::1]:80/v1", "http://[::1]:80/v1"),
    ],
)
def test_an_engine_address_loses_its_closing_slash(value: str, kept: str) -> None:
    assert from_yaml("base", value) == kept


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("h:8080", "must be an address like http://host:8080 or https://host/v1"),
        ("ftp://h", "must be an address like http://host:8080 or https://host/v1"),
        ("http://", "must be an address like http://host:8080 or https://host/v1"),
        ("http://h:0", "must be an address like http://host:8080 or https://host/v1"),
        ("http://h /v1", _NOT_SPELLED),
        ("http://h\0:80", _NOT_SPELLED),
        ("http://h/\0", _NOT_SPELLED),
        ("http://h\n", _NOT_SPELLED),
        ("http://h/\x7f", _NOT_SPELLED),
        ("http://h\u200b/v1", _NOT_SPELLED),
        ("http://h:99999", "must be an address like http://host:8080"),
        ("http://[::1", "must be an address like http://host:8080"),
        (
            "http://u:s3cret@h",
            "must not contain a user name or a password: put the key into api_key or headers",
        ),
        (
            "http://@h",
            "must not contain a user name or a password: put the key into api_key or headers",
        ),
        ("http://h?a=1", "must not contain '?' or '#'"),
        ("http://h/#", "must not contain '?' or '#'"),
    ],
)
def test_an_engine_address_is_http_and_nothing_but_an_address(value: str, message: str) -> None:
    assert refusal("base", value) == message

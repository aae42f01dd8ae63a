"""The section `tracing` of config.yaml: tracing is off without an endpoint, and keys are references."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gateway.config.settings import check_settings

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.config.sections import TracingSettings

MODEL = "models: [{name: big, protocol: tgi, api_base: 'http://tgi', price: {input_per_1m: 1, output_per_1m: 1}}]\n"


def settings_of(folder: Path, tracing: str, **environ: str) -> tuple[TracingSettings | None, list[str]]:
    (folder / "config.yaml").write_text(f"{MODEL}tracing: {tracing}\n")
    settings, _, issues = check_settings(folder / "config.yaml", environ)
    return (None if settings is None else settings.tracing), [str(one) for one in issues]


def test_without_an_endpoint_there_are_no_traces(tmp_path: Path) -> None:
    tracing, _ = settings_of(tmp_path, "{}")
    assert tracing is not None
    assert (tracing.endpoint, tracing.sample, tracing.service) == (None, 1.0, "gkt-gateway")


def test_a_collectors_key_is_read_from_its_source_and_may_contain_a_space(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("Basic Y2FuYXJ5\n")
    tracing, _ = settings_of(
        tmp_path,
        "{endpoint: 'http://otel:4318/', headers: {authorization: 'file:key', x-scope: env:SCOPE}}",
        SCOPE="a b",
    )
    assert tracing is not None
    assert tracing.endpoint == "http://otel:4318"
    assert {name: value.get_secret_value() for name, value in tracing.headers.items()} == {
        "authorization": "Basic Y2FuYXJ5", "x-scope": "a b"
    }  # fmt: skip
    assert "Y2FuYXJ5" not in repr(tracing)


def test_opentelemetrys_variables_set_endpoint_and_service(tmp_path: Path) -> None:
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://node:4318", "OTEL_SERVICE_NAME": "gateway-eu"}
    tracing, _ = settings_of(tmp_path, "{service: mine}", **environ)
    assert tracing is not None
    assert (tracing.endpoint, tracing.service) == ("http://node:4318", "gateway-eu")


@pytest.mark.parametrize(
    ("tracing", "message"),
    [
        ("{headers: {authorization: Bearer s3cret}}", "must not be written in this file"),
        ("{headers: {'no name': 'env:KEY'}}", "must be the name of a header"),
        ("{headers: {x-key: 'env:MISSING'}}", "MISSING is not set"),
        ("{headers: {x-key: 'env:CONTROL'}}", "is not allowed in a header"),
        ("{endpoint: 'otel:4318'}", "must be an address like"),
        ("{endpoint: 'http://me:s3cret@otel:4318'}", "must not contain a user name or a password"),
        ("{sample: 1.1}", "must be at most 1"),
        ("{sample: ten}", "must be a number"),
        ("{endpint: 'http://otel'}", "endpoint"),
    ],
)
def test_a_slip_is_named_and_no_secret_is_repeated(tmp_path: Path, tracing: str, message: str) -> None:
    settings, issues = settings_of(tmp_path, tracing, KEY="k", CONTROL="a\x01b")
    assert settings is None
    assert any(message in one for one in issues), issues
    assert "s3cret" not in str(issues)

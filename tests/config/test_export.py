"""The section `export` of config.yaml names its faults."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from gateway.config.export import ExportSettings

SASL = {"username": "gkt", "password": "s3cret-password"}


@pytest.mark.parametrize(
    ("kafka", "message"),
    [
        ({"brokers": ["kafka"]}, "must be HOST:PORT, like kafka-1:9092"),
        ({"brokers": ["kafka:0"]}, "must be HOST:PORT"),
        ({"brokers": ["kafka:70000"]}, "must be HOST:PORT"),
        ({"brokers": []}, "at least 1 item"),
        ({"brokers": ["a:1"], "topic": "gkt receipts"}, "1 to 249 letters, digits"),
        ({"brokers": ["a:1"], "topic": ".."}, "1 to 249 letters, digits"),
        ({"brokers": ["a:1"], "compression": "brotli"}, "'none', 'gzip'"),
        ({"brokers": ["a:1"], "tls": {"key": "/k.pem"}}, "has no certificate: set certificate, too"),
        ({"brokers": ["a:1"], "sasl": {**SASL, "mechanism": "PLAIN"}}, "PLAIN sends the password unencrypted: set tls"),
    ],
)
def test_settings_that_cannot_be(kafka: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as wrong:
        ExportSettings.model_validate({"kafka": kafka})
    assert message in str(wrong.value)
    assert "s3cret" not in " ".join(error["msg"] for error in wrong.value.errors())


def test_brokers_and_logins_that_can_be() -> None:
    given = {"brokers": ["kafka-1:9092", "[::1]:9093"], "tls": {}, "sasl": {**SASL, "mechanism": "PLAIN"}}
    kafka = ExportSettings.model_validate({"kafka": given}).kafka
    assert kafka is not None
    assert (kafka.topic, kafka.compression, kafka.timeout_s) == ("gkt-receipts", "gzip", 10.0)
    assert "s3cret" not in repr(kafka)

"""Addresses of the usage database, as config.yaml has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import sqlalchemy

from gateway.config.database_url import check_replica_url, check_usage_url, sqlalchemy_url, without_credentials
from gateway.config.scalars import InvalidValue

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "url",
    [
        "sqlite",
        "sqlite:////var/lib/gkt.db",
        "sqlite:///usage.db",
        "postgresql://db/gkt",
        "postgresql+psycopg://a:b%2F@db:5432/gkt?sslmode=require",
        "postgresql:///gkt?host=/run/postgresql",
    ],
)
def test_addresses_that_can_be(url: str, tmp_path: Path) -> None:
    check_usage_url(url)
    address = sqlalchemy_url(url, tmp_path)
    assert sqlalchemy.make_url(address).get_backend_name() == url.partition(":")[0].partition("+")[0]
    assert "b%2F" not in without_credentials(address)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "sqlite:",
        "sqlite://",
        "sqlite:///",
        "mysql://db/x",
        "postgresql:gkt",
        "postgresql://db",
        "postgresql://a:b/c@d:x/y",
    ],
)
def test_addresses_that_cannot_be(url: str) -> None:
    with pytest.raises(InvalidValue) as wrong:
        check_usage_url(url)
    assert "b/c" not in str(wrong.value)


@pytest.mark.parametrize(
    ("url", "primary", "message"),
    [
        ("sqlite", "postgresql://db/gkt", "only PostgreSQL has replicas"),
        ("postgresql://replica/gkt", "sqlite", "needs a usage.url in PostgreSQL"),
        ("postgresql://db/gkt", "postgresql://db/gkt", "is the same as usage.url"),
        ("postgresql://replica", "postgresql://db/gkt", "is not a valid URL"),
    ],
)
def test_replicas_that_cannot_be(url: str, primary: str, message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        check_replica_url(url, primary)
    check_replica_url("postgresql://replica/gkt", "postgresql://db/gkt")

from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway.edge.link import EDGE_VERSION
from gateway.errors import InvalidRequest
from gateway.protocol.edge import MAX_VERSION, MIN_VERSION, UsageBody, parse_edge_usage, parse_offline_usage

LEAST: dict[str, Any] = {"input_tokens": 5, "output_tokens": 7, "student": "phone"}
ALONE = LEAST | {"id": "6f1b3f0e-4c1c-4b5e-9d53-2f6d0c7c9a11", "model": "chat"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input_tokens": -1}, "input_tokens"),
        ({"input_tokens": None}, "input_tokens"),
        ({"output_tokens": 1.5}, "output_tokens"),
        ({"output_tokens": 10**9}, "output_tokens"),
        ({"student": ""}, "student"),
        ({"student": "x" * 65}, "student"),
        ({"student": "two\nlines"}, "student"),
        ({"student": "a line's end\n"}, "student"),
        ({"student": "\u202egnp.exe"}, "student"),
        ({"finish_reason": "DROP TABLE"}, "finish_reason"),
        ({"first_token_ms": -1}, "first_token_ms"),
        ({"total_ms": "fast"}, "total_ms"),
        ({"guided": "yes"}, "guided"),
        ({"at": -1}, "at"),
        ({"at": 1e300}, "at"),
        ({"id": "7"}, "id"),
        ({"id": None}, "id"),
        ({"model": ""}, "model"),
    ],
)
def test_a_bad_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_offline_usage(orjson.dumps(ALONE | fields))
    assert caught.value.param == param
    assert caught.value.message.startswith(f"'{param}'")


@pytest.mark.parametrize("missing", ["input_tokens", "output_tokens", "student", "id", "model"])
def test_a_field_that_is_missing_is_named(missing: str) -> None:
    with pytest.raises(InvalidRequest, match=f"'{missing}' is required"):
        parse_offline_usage(orjson.dumps({name: value for name, value in ALONE.items() if name != missing}))


def test_missing_fields_are_none_and_guidance_counts_as_used() -> None:
    assert parse_edge_usage(orjson.dumps(LEAST)) == UsageBody(5, 7, "phone", None, None, None, guided=True, at=None)
    assert not parse_edge_usage(orjson.dumps(LEAST | {"guided": False})).guided


def test_a_uuid_is_normalized() -> None:
    written = [ALONE["id"], ALONE["id"].upper(), ALONE["id"].replace("-", "")]
    assert len({parse_offline_usage(orjson.dumps(ALONE | {"id": one})).id for one in written}) == 1
    assert not parse_offline_usage(orjson.dumps(ALONE | {"guided": True})).guided, "nobody guided it"


def test_the_client_of_this_release_uses_the_newest_version() -> None:
    assert MIN_VERSION <= EDGE_VERSION == MAX_VERSION

"""No field changes the number of answers or tokens without a reservation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import orjson
import pytest

from gateway.errors import InvalidRequest
from gateway.pipeline.guidance_request import UNGUIDED
from gateway.pipeline.student_request import build_student_request
from gateway.policy.plan import StudentPlan
from gateway.protocol.body import read_known_fields
from gateway.protocol.chat import ChatBody, parse_chat
from gateway.protocol.edge import parse_edge_usage
from gateway.protocol.embeddings import parse_embeddings
from gateway.protocol.field_names import ALIASES, HOLDERS
from gateway.protocol.text import parse_text_completion
from tests.accounting.receipt_builders import plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.protocol.requests import AnyRequest

PAGE = (Path(__file__).parents[2] / "docs/reference/request-fields.md").read_text("utf-8")
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Why?"}]}
TEXT: dict[str, Any] = {"model": "m", "prompt": "Why?"}
VECTORS: dict[str, Any] = {"model": "m", "input": "Why?"}
GENERATING = [pytest.param(parse_chat, CHAT, id="chat"), pytest.param(parse_text_completion, TEXT, id="completions")]
ALL = [*GENERATING, pytest.param(parse_embeddings, VECTORS, id="embeddings")]
Parse: TypeAlias = "Callable[[bytes], AnyRequest]"


def rejection(parse: Parse, body: dict[str, Any]) -> tuple[str | None, str]:
    with pytest.raises(InvalidRequest) as refusal:
        parse(orjson.dumps(body))
    return refusal.value.param, str(refusal.value)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("parse", "body"), GENERATING)
@pytest.mark.parametrize(
    ("replacement", "alias"), [(replacement, alias) for replacement, aliases in ALIASES.items() for alias in aliases]
)
def test_other_names_of_counts_are_rejected(
    parse: Parse, body: dict[str, Any], replacement: str, alias: str, stream: bool
) -> None:
    for value in (64, 1, "64"):
        param, message = rejection(parse, {**body, "stream": stream, "max_tokens": 9, alias: value})
        assert param == alias
        assert message == (
            f"'{alias}' is not accepted: some engines treat it as '{replacement}', and the gateway does not. "
            f"Send '{replacement}'."
        )
    assert parse(orjson.dumps({**body, alias: None})).generated_choices == 1


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize(("parse", "body"), GENERATING)
def test_counts_in_a_holder_are_rejected(parse: Parse, body: dict[str, Any], holder: str) -> None:
    for name in ("model", "n", "best_of", "max_tokens", "max_completion_tokens", "n_cmpl", "max_new_tokens", "N"):
        assert rejection(parse, {**body, holder: {"top_k": 5, name: 64}})[0] == f"{holder}.{name}"
    assert parse(orjson.dumps({**body, holder: {"top_k": 5, "n": None}})).generated_choices == 1


@pytest.mark.parametrize(("parse", "body"), ALL)
def test_a_field_in_another_case_is_refused(parse: Parse, body: dict[str, Any]) -> None:
    """Ollama's decoder ignores the case, also of the Kelvin sign, and the last field counts: null removes a limit."""
    assert rejection(parse, {**body, "MODEL": "dear"})[0] == "MODEL"
    if body is not VECTORS:
        for name in ("Max_Tokens", "max_to\u212aens", "N", "N_CMPL"):
            assert rejection(parse, {**body, "max_tokens": 9, name: 64})[0] == name
        assert rejection(parse, {**body, "max_tokens": 9, "Max_Tokens": None})[0] == "Max_Tokens"


def test_a_report_of_a_device_has_one_name_for_each_count() -> None:
    body = {"input_tokens": 1, "output_tokens": 1, "Output_Tokens": 2, "student": "s"}
    with pytest.raises(InvalidRequest, match="'Output_Tokens' is not accepted"):
        parse_edge_usage(orjson.dumps(body))


def test_embeddings_accept_names_of_token_limits() -> None:
    """Servers of embeddings read `max_length` as the length at which they cut a text."""
    assert parse_embeddings(orjson.dumps({**VECTORS, "max_length": 512, "n_cmpl": 64})).generated_choices == 0


@pytest.mark.parametrize("more", [{}, {"use_beam_search": True}])
@pytest.mark.parametrize(("parse", "body"), GENERATING)
def test_generated_choices_are_counted(parse: Any, body: dict[str, Any], more: dict[str, Any]) -> None:
    """The larger of `n` and `best_of` is the width of a beam search."""
    for counts, generated in (({"best_of": 8}, 8), ({"n": 2, "best_of": 8}, 8), ({"n": 8}, 8)):
        request = parse(orjson.dumps({**body, **counts, **more}))
        assert request.generated_choices == generated
        sent = build_student_request(plan("student"), StudentPlan("small", None), request, UNGUIDED).body
        assert {name: sent[name] for name in counts} == counts


def test_the_page_has_the_table() -> None:
    for name, aliases in ALIASES.items():
        assert f"| `{name}` | {', '.join(f'`{alias}`' for alias in aliases)} |" in PAGE
    assert "in " + ", ".join(f"`{holder}`" for holder in HOLDERS[:-1]) in PAGE.replace("\n", " ")


def test_an_api_that_forwards_no_other_fields_accepts_any_name() -> None:
    """Neither names of destinations nor other names of known fields concern such a body. Known fields are checked."""
    other = {"api_base": "http://other", "Max_Tokens": 1, "max_new_tokens": 2, "n_cmpl": 3}
    body, known = read_known_fields(orjson.dumps({**CHAT, **other, "max_tokens": 5.0}), ChatBody, "'model'")
    assert (known.model, known.max_tokens) == ("m", 5)
    assert body["max_tokens"] == 5
    with pytest.raises(InvalidRequest) as caught:
        read_known_fields(orjson.dumps({**CHAT, "max_tokens": 0}), ChatBody, "'model'")
    assert caught.value.param == "max_tokens"
    with pytest.raises(InvalidRequest, match="JSON object with 'model'"):
        read_known_fields(b"[]", ChatBody, "'model'")

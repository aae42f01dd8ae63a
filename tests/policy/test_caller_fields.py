"""Fields and addresses that reach the server of an engine itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import httpx
import orjson
import pytest

from gateway.errors import InvalidRequest
from gateway.policy.caller_fields import SERVER_FIELDS, CallerFieldsRule, ServerField, check_caller_fields
from gateway.protocol.anthropic.request import parse_messages
from gateway.protocol.chat import parse_chat
from gateway.protocol.embeddings import parse_embeddings
from gateway.protocol.responses.request import parse_responses
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, STUDENT_ONLY, model, running_gateway

DEFAULT = CallerFieldsRule()
FIELDS = get_args(ServerField)


def check(rule: CallerFieldsRule = DEFAULT, part: Any = None, **fields: Any) -> InvalidRequest | None:
    """Return the error of a chat with these fields, or with this content part."""
    content: Any = "Why?" if part is None else [{"type": "text", "text": "What is it?"}, part]
    body = {"model": "chat", "messages": [{"role": "user", "content": content}], **fields}
    try:
        check_caller_fields(rule, parse_chat(orjson.dumps(body)))
    except InvalidRequest as error:
        return error
    return None


def picture(url: Any, kind: str = "image_url") -> dict[str, Any]:
    return {"type": kind, kind: {"url": url}}


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_of_the_server_is_rejected_unless_the_policy_allows_it(name: Any) -> None:
    for fields, path in (
        ({name: 1}, name),
        ({"extra_body": {name: 1}}, f"extra_body.{name}"),
        ({"chat_template_kwargs": {name: 1}}, f"chat_template_kwargs.{name}"),
    ):
        error = check(**fields)
        assert error is not None
        assert (error.status, error.param) == (400, path)
        assert "caller_fields.allow" in error.message
        assert check(CallerFieldsRule(allow=(name,)), **fields) is None


def test_each_field_of_the_server_has_one_purpose() -> None:
    assert sorted(FIELDS) == sorted(name for names in SERVER_FIELDS.values() for name in names)


def test_the_page_on_fields_names_each_field_of_the_server() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/request-fields.md").read_text("utf-8")
    table = page.partition("## Fields that reach the server")[2].partition("```yaml")[0]
    assert [name for name in FIELDS if f"`{name}`" not in table] == []


def test_a_name_in_another_case_is_the_same_field() -> None:
    assert check(Priority=1) is not None


def test_other_fields_are_the_callers() -> None:
    fields = {"temperature": 0, "chat_template_kwargs": {"enable_thinking": False}, "guided_json": {}, "priority": None}
    assert check(**fields) is None


def test_a_policy_rejects_further_fields() -> None:
    error = check(CallerFieldsRule(reject=("mm_processor_kwargs",)), mm_processor_kwargs={"size": 9})
    assert error is not None
    assert "'mm_processor_kwargs'" in error.message
    assert "caller_fields.reject" in error.message


def test_embeddings_have_the_same_rule() -> None:
    with pytest.raises(InvalidRequest, match="'priority' is not allowed"):
        check_caller_fields(DEFAULT, parse_embeddings(b'{"model": "e", "input": "a", "priority": -1}'))


PRIVATE = [
    "http://127.0.0.1/a", "http://localhost/a", "http://LOCALHOST./a", "http://a.localhost/a", "http://169.254.169.254/",
    "http://10.0.0.1/", "http://172.16.0.1/", "http://192.168.1.1/", "http://100.64.0.1/", "http://0.0.0.0/",
    "http://0/", "http://127.1/", "http://2130706433/", "http://0x7f000001/", "http://0x7f.0.0.1/", "http://0177.0.0.1/",
    "http://017700000001/", "http://010.0.0.1/", "http://012.1.1.1/", "http://127.0.0.1./", "http://127.0.0.1:80/",
    "http://[::1]/", "http://[::]/", "http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/", "http://[::127.0.0.1]/",
    "http://[64:ff9b::7f00:1]/", "http://[2002:7f00:1::]/", "http://[fe80::1%25eth0]/", "http://[fd00::1]/",
    "http://[fec0::1]/", "http://%31%32%37.0.0.1/", "http://\uff11\uff12\uff17.0.0.1/", "http://127。0。0。1/", "http://127.0.0.1?a",
    "http://127.0.0.1#a", "http://good.example@127.0.0.1/", "http://good.example\\@127.0.0.1/", "http:127.0.0.1/",
    "http:/127.0.0.1/", "http:///127.0.0.1/", " http://127.0.0.1/", "http://127.0.\t0.1/", "http://224.0.0.1/",
    "http://255.255.255.255/", "http://4294967297/", "http://1.2.3.4.5/", "http://redis/", "http://vault.internal/",
    "file:///etc/passwd", "FILE:///etc/passwd", "/etc/passwd.png", "gs://bucket/a.png", "ftp://a.example/a", "",
    # URL parsers delete invisible characters.
    "http://169.254.169.254\u00ad/", "http://127.0.0.1\u200b/", "http://127.0.0.1%c2%ad/", "http://vault.internal\u00ad/",
    "http://localhost.\u00ad/", "http://127.0.0.1\ufe00/", "http://127.0.0.1\U000e0100/",
]  # fmt: skip


@pytest.mark.parametrize("url", PRIVATE)
def test_an_address_that_is_not_public_is_rejected(url: str) -> None:
    for kind in ("image_url", "audio_url", "video_url"):
        error = check(part=picture(url, kind))
        assert error is not None, url
        assert error.param == f"messages[0].content[1].{kind}.url"
    assert check(part={"type": "image_url", "image_url": url}) is not None
    assert check(part={"type": "file", "file": {"file_url": url}}) is not None


def test_the_error_names_no_field_that_the_caller_did_not_send() -> None:
    """Bodies of other APIs are converted, which moves and joins their messages."""
    image = {"type": "image", "source": {"type": "url", "url": "file:///etc/passwd"}}
    asked = {
        "model": "chat",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": [image]}],
        "system": "Be brief.",
    }
    part = {"type": "input_image", "image_url": "file:///etc/passwd"}
    responses = {"model": "chat", "input": [{"role": "user", "content": [part]}]}
    chats = [parse_messages(orjson.dumps(asked)).chat, parse_responses(orjson.dumps(responses)).chat()]
    for chat in chats:
        with pytest.raises(InvalidRequest, match=r"^The request has the address of an image: addresses need") as caught:
            check_caller_fields(DEFAULT, chat)
        assert caught.value.param is None


@pytest.mark.parametrize(
    "url",
    ["https://a.example/b.png?x=1#y", "http://8.8.8.8:8080/a", "http://[2606:4700::1111]/a", "HTTPS://A.example",
     "data:image/png;base64,AAAA", "https://xn--bcher-kva.example/", "https://bücher.example/"],
)  # fmt: skip
def test_a_public_address_is_accepted(url: str) -> None:
    """Names are not resolved."""
    assert check(part=picture(url)) is None


@pytest.mark.parametrize(
    "part",
    [
        {"type": "document_url", "document_url": "http://127.0.0.1/"},
        {"type": "image", "image": "file:///a"},
        {"type": "file", "file": {"file_id": "http://127.0.0.1/"}},
        {"type": "file", "file": {"file_data": "file:///etc/passwd"}},
        {"type": "image_url", "image_url": {"uri": "/a"}},
        {"type": "image_url", "image_url": [{"url": "file:///a"}]},
        {"type": "image_url", "a": {"b": {"c": {"d": {"e": {"url": "file:///a"}}}}}},
    ],
)
def test_an_address_is_found_in_each_form_of_a_part(part: dict[str, Any]) -> None:
    assert check(part=part) is not None


@pytest.mark.parametrize(
    "part",
    [
        {"type": "file", "file": {"file_id": "file-abc", "filename": "C:/a.pdf"}},
        {"type": "input_audio", "input_audio": {"data": "/9j/4AAQ", "format": "wav"}},
        {"type": "refusal", "refusal": "file: not read"},
    ],
)
def test_a_part_without_an_address_is_accepted(part: dict[str, Any]) -> None:
    assert check(part=part) is None


def test_embeddings_of_chats_have_the_rule_for_addresses() -> None:
    body = {"model": "e", "input": "a", "messages": [{"role": "user", "content": [picture("file:///etc/passwd")]}]}
    with pytest.raises(InvalidRequest):
        check_caller_fields(DEFAULT, parse_embeddings(orjson.dumps(body)))


def test_a_policys_names_have_any_case() -> None:
    rule = CallerFieldsRule(reject=("topK",), url_schemes=("HTTPS",))
    assert check(rule, topK=2) is not None
    assert check(rule, picture("https://a.example/a.png")) is None


def test_a_policy_allows_schemes_and_private_addresses() -> None:
    rule = CallerFieldsRule(url_schemes=("http", "gs"), private_urls=True)
    assert check(rule, picture("gs://bucket/a.png")) is None
    assert check(rule, picture("http://10.0.0.1/a.png")) is None
    assert check(rule, picture("data:,")) is not None


def test_a_gateway_rejects_them_before_an_engine_gets_the_call(redis_url: str, tmp_path: Path) -> None:
    with (
        FakeEngine(says("Fine.")).running() as student,
        running_gateway(
            tmp_path,
            redis_url=redis_url,
            redis={"prefix": "caller-fields"},
            models=[model("small", "openai", f"{student.url}/v1", continuation="none")],
            routes=[STUDENT_ONLY | {"baseline": "small"}],
        ) as gateway,
    ):
        before = len(student.requests)
        for more in ({"priority": -5}, {"messages": [{"role": "user", "content": [picture("file:///etc/passwd")]}]}):
            body = {"model": STUDENT_ONLY["model"], "messages": [{"role": "user", "content": "Why?"}]} | more
            headers = {"Authorization": f"Bearer {KEY}"}
            answer = httpx.post(f"{gateway.url}/v1/chat/completions", headers=headers, json=body, timeout=10)
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] in {"priority", "messages[0].content[0].image_url.url"}
        assert len(student.requests) == before

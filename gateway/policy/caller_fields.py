"""Request fields and addresses that reach the server of an engine itself: callers may use what the policy allows.

Engines apply these fields to scheduling, templates, code and adapters. The addresses of pictures, audio and files make
an engine read its own disk or network. docs/reference/request-fields.md shows the table with its sources.
"""

from __future__ import annotations

import re
import socket
import unicodedata
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import unquote

from pydantic import Field

from gateway.config.scalars import Flag, Label
from gateway.config.yaml_source import StrictModel
from gateway.errors import InvalidRequest
from gateway.policy.constraints import HOLDERS as TEMPLATE_HOLDERS
from gateway.protocol.chat import ChatRequest
from gateway.protocol.field_names import HOLDERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.protocol.requests import AnyRequest

ServerField = Literal[
    "priority", "id_slot", "data_parallel_rank", "routed_dp_rank", "backend_instance_id", "agent_hints", "keep_alive",
    "chat_template", "tokenize", "logits_processors", "custom_logit_processor", "lora", "lora_path", "adapter_id",
]  # fmt: skip
SERVER_FIELDS: dict[str, tuple[ServerField, ...]] = {
    "scheduling": (
        "priority", "id_slot", "data_parallel_rank", "routed_dp_rank", "backend_instance_id", "agent_hints",
        "keep_alive",
    ),
    "templates": ("chat_template", "tokenize"),
    "code": ("logits_processors", "custom_logit_processor"),
    "adapters": ("lora", "lora_path", "adapter_id"),
}  # fmt: skip
"""The fields by what they reach."""
_DEFAULT_FIELDS = frozenset(name for names in SERVER_FIELDS.values() for name in names)
FIELD_HOLDERS = frozenset({*HOLDERS, *TEMPLATE_HOLDERS})
"""Objects in which the fields are rejected, too."""
URL_KEYS = frozenset({"url", "uri", "image_url", "audio_url", "video_url", "file_url", "document_url"})
"""Names of addresses in content parts."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
# Fields with data or with an address.
_CONTENT_KEYS = frozenset({"image", "video", "audio", "document", "data", "file_id", "file_data"})
_ADDRESS = re.compile(r"\s*(?:file:|[a-z][a-z0-9+.-]*:/)", re.IGNORECASE)
# Parsers of URLs disagree on these: some skip them, some end the host there.
_AMBIGUOUS = re.compile(r"[\x00-\x20\x7f\\]")
# Unicode's Default_Ignorable_Code_Point: URL parsers delete these characters from a host.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_TEXT_PARTS = frozenset({"text", "refusal"})
_NUMBER = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)")
_PRIVATE_ENDS = (".localhost", ".local", ".internal", ".home.arpa")
_MAX_ADDRESS_CHARS = 8192  # of an address that is no data URL


class CallerFieldsRule(StrictModel):
    """Fields and addresses that callers may send to the server of an engine itself."""

    allow: Annotated[tuple[ServerField, ...], Field(max_length=20)] = ()
    """Fields for scheduling, templates, code and adapters that callers may set. Any other one is a 400."""
    reject: Annotated[tuple[Label, ...], Field(max_length=64)] = ()
    """Further fields that callers may not set."""
    url_schemes: Annotated[tuple[Label, ...], Field(max_length=16)] = ("http", "https", "data")
    """Schemes of the addresses of pictures, audio and files."""
    private_urls: Flag = False
    """Accept loopback, link-local and private addresses, too. Names are not resolved."""


def check_caller_fields(rule: CallerFieldsRule, request: AnyRequest) -> None:
    """Raise InvalidRequest for a field or an address that the rule does not allow."""
    body = request.body
    rejected = _DEFAULT_FIELDS.difference(rule.allow).union(map(str.casefold, rule.reject))
    for name, value in body.items():
        if value is None:
            continue
        if name.casefold() in rejected:
            raise _rejected(name, name.casefold())
        if name in FIELD_HOLDERS and isinstance(value, dict):
            for held, inner in value.items():
                if inner is not None and held.casefold() in rejected:
                    raise _rejected(f"{name}.{held}", held.casefold())
    for kind, at, url in _urls(body.get("messages")):
        if (why := _why_refused(url, rule)) is not None:
            if isinstance(request, ChatRequest) and request.is_converted:
                raise InvalidRequest(f"The request has the address of {kind}: {why}")
            raise InvalidRequest(f"'{at}': {why}", param=at)


def _rejected(path: str, name: str) -> InvalidRequest:
    setting = "caller_fields.allow" if name in _DEFAULT_FIELDS else "caller_fields.reject"
    return InvalidRequest(
        f"'{path}' is not allowed. Remove the field, or ask the operator to change '{setting}' of the policy.",
        param=path,
    )


def _urls(messages: Any) -> Iterator[tuple[str, str, str]]:
    """Yield the addresses in content parts without text, each with the kind of its content and its place."""
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        content = message.get("content") if isinstance(message, dict) else None
        for number, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, dict) and part.get("type") not in _TEXT_PARTS:
                kind = "an image" if part.get("type") == "image_url" else "a file"
                for at, url in _urls_in(part, f"messages[{index}].content[{number}]", ""):
                    yield kind, at, url


def _urls_in(value: Any, at: str, name: str) -> Iterator[tuple[str, str]]:
    """Yield the addresses in a value of the field `name`."""
    if isinstance(value, str):
        if name in URL_KEYS or (name in _CONTENT_KEYS and _ADDRESS.match(value)):
            yield at, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _urls_in(inner, f"{at}.{key}", key.casefold())
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _urls_in(inner, f"{at}[{number}]", "")


def _why_refused(url: str, rule: CallerFieldsRule) -> str | None:
    """Return why an address is refused, with the correction; None: it is allowed."""
    found = _SCHEME.match(url)
    scheme = found[1].lower() if found is not None else ""
    if scheme not in map(str.casefold, rule.url_schemes):
        return f"addresses need one of the schemes {', '.join(rule.url_schemes)}. Send the data as a data: URL."
    if scheme == "data" or rule.private_urls:
        return None
    if len(url) > _MAX_ADDRESS_CHARS:
        return f"the address is longer than {_MAX_ADDRESS_CHARS} characters. Send the data as a data: URL."
    rest = url[len(scheme) + 1 :]
    if not rest.startswith("//") or _AMBIGUOUS.search(url):
        return "the address is ambiguous. Send it as scheme://host/path, with other characters percent-encoded."
    authority = re.split(r"[/?#]", rest[2:], maxsplit=1)[0]
    if "@" in authority:
        return "the address contains credentials. Remove them, or send the data as a data: URL."
    if not _is_public(_host_of(authority)):
        return "the address is not a public one. Send the data as a data: URL."
    return None


def _host_of(authority: str) -> str:
    """Return the host as URL parsers read it: decoded, in compatible characters, in lower case, without the port.

    It is empty if it contains characters that parsers delete.
    """
    host = unicodedata.normalize("NFKC", unquote(authority)).lower().replace("。", ".")
    if _INVISIBLE.search(host):
        return ""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].rstrip(".")


def _is_public(host: str) -> bool:
    """Return whether a host is a public address, or a name. Names are not resolved."""
    if host.startswith("["):
        try:
            return _is_public_v6(IPv6Address(host[1:-1].partition("%")[0]))
        except AddressValueError:
            return False
    labels = host.split(".")
    if _NUMBER.fullmatch(labels[-1]) is None:
        is_name = len(labels) > 1 and re.search(r"[\s/\\@:\[\]?#]", host) is None
        return is_name and not host.endswith(_PRIVATE_ENDS)
    return all(map(_is_public_v4, _readings(labels))) if len(labels) <= 4 else False


def _readings(labels: list[str]) -> Iterator[IPv4Address | None]:
    """Yield an address as its parsers read it: a leading zero means octal for some, and nothing for others."""
    for numbers in (labels, [label if label.startswith("0x") else label.lstrip("0") or "0" for label in labels]):
        try:
            yield IPv4Address(socket.inet_aton(".".join(numbers)))
        except (OSError, ValueError):
            yield None


def _is_public_v4(address: IPv4Address | None) -> bool:
    return address is not None and address.is_global and not address.is_multicast and not address.is_reserved


def _is_public_v6(address: IPv6Address) -> bool:
    # An address of the reserved block ::/8 contains an IPv4 address: IPv4-compatible, IPv4-mapped or NAT64.
    inner = address.ipv4_mapped or address.sixtofour
    if inner is not None:
        return _is_public_v4(inner)
    special = address.is_reserved or address.is_multicast or address.is_site_local
    return address.is_global and not special

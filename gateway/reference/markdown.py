"""Reference pages of config.yaml, of policy files and of projections, in Markdown: what the JSON Schemas say, for eyes.

A test holds docs/reference/configuration.md and docs/reference/policy.md to this output. A schema's parts become
sections, each headed by the place where it first stands: `routes[].guidance`. A part that may stand in several places
has one section, which names the others.
"""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING, Any

import orjson

from gateway.config.settings import OVERRIDES
from gateway.reference.json_schema import json_schema

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_REF = "#/$defs/"
_NO_BOUND = 2**53
"""From here on a bound is the machine's, and tells nobody anything."""
_TITLES = {
    "config": "Configuration reference",
    "policy": "Policy reference",
    "projection": "Projection reference",
    "curve": "Curve reference",
}
_ABOUT = {
    "config": (
        "Every key of [config.yaml](../../config.yaml). That file shows the keys in use, with their defaults; "
        "[quickstart.md](../quickstart.md#your-own-engines) has a short one."
    ),
    "policy": (
        "Every key of a file in the policies folder. Each file is the policy of one tenant. "
        "[policies/default.yaml](../../policies/default.yaml) shows the keys in use, [policies.md](../policies.md) "
        "explains them."
    ),
    "projection": "Every key of a file in policies/projections: see [policies.md](../policies.md#projections).",
    "curve": "Every key of a file with an engine's curve: [planning.md](../design/planning.md) explains them.",
}
_NOTES = (
    "Durations carry a unit (`250ms`, `30s`, `5m`, `1h`, `1d`), and so do sizes (`64MB`, `8MiB`). Secrets are "
    "references: `env:NAME` or `file:/run/secrets/name`. A key that is not known is a mistake, named with its line by "
    "`gkt-gateway check`. Where a meaning says None, that is the key left out."
)
_MADE = "This page is made by `gkt-gateway schema {name} --markdown`; a test holds it to what the code checks."
# What a pattern of config/scalars.py, config/limits.py or a rule means to who writes YAML; by a piece that only it has.
_SPELT = (
    ("(ms|s|m|h|d)$", "duration"),
    ("[iI][bB]", "size"),
    ("(h|d|w|mo)$", "period, like `1d` or `1mo`"),
    ("^(env:", "reference"),
    ("https?://", "address"),
    ("[0-9a-fA-F]{64}", "64 hex digits"),
    ("{2}-[0-9]{2}([T ]", "date or time"),
    ("{2}(-[0-9]{2})?$", "day or month, like `2026-07-01` or `2026-07`"),
    (" ?%$", "percentage, like `1%`"),
)
_PLAIN = re.compile(r"\^\(?\[A-Za-z0-9(?P<marks>[._:/-]+)\](\{1,(?P<most>\d+)\}|\+)\)?\$")


def reference(name: str) -> str:
    """The page of one schema, `config`, `policy`, `projection` or `curve`; it ends in a newline."""
    whole = json_schema(name)
    parts = whole.get("$defs", {})
    places = _places(whole, parts)
    lines = [f"# {_TITLES[name]}", ""]
    for paragraph in (_ABOUT[name], _NOTES, _MADE.format(name=name)):
        lines += [*textwrap.wrap(paragraph, 120, break_long_words=False, break_on_hyphens=False), ""]
    lines += _table(whole, places)
    for part, (head, *others) in places.items():
        lines += ["", f"## `{head}`", "", parts[part]["description"], ""]
        lines += [f"The same at {_listed(others)}.", ""] if others else []
        lines += _table(parts[part], places)
    return "\n".join([*lines, *(_environment() if name == "config" else ()), ""])


def _places(whole: dict[str, Any], parts: dict[str, Any]) -> dict[str, list[str]]:
    """Each part -> where it may stand, outermost first; one that holds itself is followed no further.

    In the order in which a reader of the file comes to those first places.
    """
    met: list[tuple[str, str]] = []

    def walk(shape: dict[str, Any], above: str) -> None:
        for key, prop in shape["properties"].items():
            for part, suffix in _parts_of(prop):
                known = any(part == other for other, _ in met)
                met.append((part, f"{above}{key}{suffix}"))
                if not known:
                    walk(parts[part], f"{above}{key}{suffix}.")

    walk(whole, "")
    found: dict[str, list[str]] = {}
    for part, place in met:
        found.setdefault(part, []).append(place)
    for places in found.values():
        places.sort(key=lambda place: place.count("."))
    return dict(sorted(found.items(), key=lambda item: met.index((item[0], item[1][0]))))


def _parts_of(schema: dict[str, Any], suffix: str = "") -> Iterator[tuple[str, str]]:
    """The parts that a value may be or hold, and how they stand under it: `[]` in a list, `.NAME` in a map."""
    if "$ref" in schema:
        yield schema["$ref"].removeprefix(_REF), suffix
    for arm in (*schema.get("allOf", ()), *schema.get("anyOf", ())):
        yield from _parts_of(arm, suffix)
    if "items" in schema:
        yield from _parts_of(schema["items"], suffix + "[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from _parts_of(schema["additionalProperties"], suffix + ".NAME")


def _table(shape: dict[str, Any], places: Mapping[str, list[str]]) -> Iterator[str]:
    yield "| key | what it may be | default | meaning |"
    yield "|---|---|---|---|"
    for key, prop in shape["properties"].items():
        cells = (f"`{key}`", _words(prop, places), _default(key, prop, shape), prop.get("description", ""))
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(key: str, prop: dict[str, Any], shape: dict[str, Any]) -> str:
    if key in shape.get("required", ()):
        return "needed"
    return f"`{_as_yaml(prop['default'])}`" if "default" in prop else ""


def _as_yaml(value: Any) -> str:
    """As YAML has it."""
    return f"{value:g}" if isinstance(value, float) else orjson.dumps(value).decode().strip('"')


def _words(schema: dict[str, Any], places: Mapping[str, list[str]]) -> str:
    """What a value may be, in words; a part of its own as a link to its section."""
    if "$ref" in schema:
        place = places[schema["$ref"].removeprefix(_REF)][0]
        return f"[keys](#{_anchor(place)})"
    if "allOf" in schema:
        return _words(schema["allOf"][0], places)
    if "anyOf" in schema:
        return ", or ".join(_words(arm, places) for arm in schema["anyOf"])
    if "enum" in schema:
        return _listed([_as_yaml(value) for value in schema["enum"]], "or")
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema["type"]
    if kind == "array":
        return f"list{_count(schema, 'Items', ' of')}: {_words(schema['items'], places)}"
    if kind == "object":
        return f"map{_count(schema, 'Properties', ' of')} by name: {_words(schema['additionalProperties'], places)}"
    if kind == "boolean":
        return "`true` or `false`"
    return _text(schema) if kind == "string" else _number(schema)


def _text(schema: dict[str, Any]) -> str:
    pattern = schema.get("pattern", "")
    plain = _PLAIN.fullmatch(pattern)
    if plain is not None:
        most = plain["most"] or schema["maxLength"]
        return f"1 to {most} letters, digits or any of `{' '.join(plain['marks'])}`"
    spelt = next((words for piece, words in _SPELT if piece in pattern), None)
    if spelt is not None:
        return spelt
    if schema.get("format") == "path":
        return "path"
    return f"text{_count(schema, 'Length')}"


def _number(schema: dict[str, Any]) -> str:
    word = "whole number" if schema["type"] == "integer" else "number"
    least, most, above = (schema.get(bound) for bound in ("minimum", "maximum", "exclusiveMinimum"))
    if most is None or most >= _NO_BOUND:
        return word if least is None else f"{word}, {least:,} or more"
    return f"{word}, above {above:,} up to {most:,}" if above is not None else f"{word}, {least:,} to {most:,}"


def _count(schema: dict[str, Any], of: str, before: str = ",") -> str:
    """How many items, names or characters, as `, 1 to 8`."""
    least, most = schema.get(f"min{of}", 0), schema.get(f"max{of}")
    unit = " characters" if of == "Length" else ""
    if most is not None:
        return f"{before} {least} to {most:,}{unit}" if least else f"{before} up to {most:,}{unit}"
    return f"{before} {least}{unit} or more" if least else ""


def _listed(values: list[str], last: str = "and") -> str:
    quoted = [f"`{value}`" for value in values]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} {last} {quoted[-1]}"


def _anchor(place: str) -> str:
    """What forges make of a heading."""
    return re.sub(r"[^a-z0-9_-]", "", place.lower())


def _environment() -> Iterator[str]:
    yield from ("", "## Environment", "", "These variables go before the file; an empty one counts as not set.", "")
    yield from ("| variable | in the place of |", "|---|---|")
    for variable, loc in OVERRIDES.items():
        yield f"| `{variable}` | `{'.'.join(map(str, loc))}` |"

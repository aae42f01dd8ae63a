"""Write data as YAML with comments."""

from __future__ import annotations

from decimal import Decimal
from io import StringIO
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.representer import RoundTripRepresenter

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gateway.config.yaml_messages import Loc

_WIDTH = 120
_MAX_FLOW = 70  # characters of a mapping that is written in one line


class _Representer(RoundTripRepresenter):
    """Represents Decimal exactly, and writes equal values without YAML aliases."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


def _decimal(representer: Any, number: Decimal) -> Any:
    tag = "int" if number == int(number) else "float"
    return representer.represent_scalar(f"tag:yaml.org,2002:{tag}", f"{number:f}")


_Representer.add_representer(Decimal, _decimal)


def yaml_text(data: Mapping[str, Any], comments: Mapping[Loc, str], head: str) -> str:
    """Return data as YAML.

    Args:
        data: mappings, lists and scalars, with Decimal for exact numbers.
        comments: comments at the end of lines, by location.
        head: comment before the data, without `#`.
    """
    root = _commented(data, (), comments)
    root.yaml_set_start_comment(head)
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = _WIDTH
    output = StringIO()
    yaml.dump(root, output)
    return output.getvalue()


def _commented(value: Any, loc: Loc, comments: Mapping[Loc, str]) -> Any:
    """Return a value as ruamel's types. Short values without comments and below the first level are in one line."""
    if isinstance(value, dict):
        mapping = CommentedMap({key: _commented(one, (*loc, key), comments) for key, one in value.items()})
        texts = {key: text for key in value if (text := comments.get((*loc, key))) is not None}
        for key, text in texts.items():
            mapping.yaml_add_eol_comment(_printable(text), key)
        if loc and not texts and _is_short(value.values()) and not _is_entry(loc, value):
            mapping.fa.set_flow_style()
        return mapping
    if isinstance(value, list):
        items = CommentedSeq(_commented(one, (*loc, index), comments) for index, one in enumerate(value))
        if _is_short(value):
            items.fa.set_flow_style()
        return items
    return value


def _is_short(values: Iterable[Any]) -> bool:
    values = list(values)
    return len(str(values)) <= _MAX_FLOW and not any(isinstance(one, dict | list) for one in values)


def _is_entry(loc: Loc, value: Mapping[str, Any]) -> bool:
    """Return whether a mapping is an entry of the list of models or routes, which have one line for each key."""
    return isinstance(loc[-1], int) and not value.keys() <= {"model", "weight"}


def _printable(text: str) -> str:
    """Return a text that cannot end a comment."""
    return "".join(letter if letter.isprintable() else " " for letter in text)

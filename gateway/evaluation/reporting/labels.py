"""Short labels of settings, without parameters that all settings of a run share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Plain = Mapping[str, Any]


def label(setting: Plain, others: Sequence[Plain]) -> str:
    """Return a label that is unique among `others`, settings as dicts, without parameters that never differ."""
    words = [answered_by(setting, others), *_request_parts(setting, others)]
    return ", ".join(words)


def answered_by(setting: Plain, others: Sequence[Plain]) -> str:
    """Return the models and the guidance, without the request form."""
    if setting["mode"] != "guided":
        return f"{setting['mode']} alone"
    return f"{line(setting, others)}, m={setting['tokens']}"


def line(setting: Plain, others: Sequence[Plain]) -> str:
    """Return the kind of guidance without its length, as joined by a line of a figure."""
    guided = [one for one in others if one["mode"] == "guided"]
    words = [setting["projection"]]
    if _differ("placement", guided):
        words.append(f"as {setting['placement']}")
    if _differ("boundary", guided):
        words.append(f"cut at a {setting['boundary']}")
    return " ".join(words)


def request_in_words(setting: Plain) -> str:
    """Return the request form: format, exemplars, limit, sampling."""
    return ", ".join(_request_parts(setting, None))


def _request_parts(setting: Plain, others: Sequence[Plain] | None) -> list[str]:
    words = {
        "form": "raw prompt" if setting["form"] == "completion" else "chat",
        "shots": f"{setting['shots'] or 'no'} exemplars",
        "max_tokens": f"at most {setting['max_tokens']} tokens",
        "temperature": f"temperature {setting['temperature']:g}" if setting["temperature"] else "greedy",
        "top_p": None if setting.get("top_p") is None else f"top_p {setting['top_p']:g}",
        "seed": None if setting.get("seed") is None else f"seed {setting['seed']}",
    }
    return [text for name, text in words.items() if text and (others is None or _differ(name, others))]


def _differ(name: str, others: Sequence[Plain]) -> bool:
    return len({one.get(name) for one in others}) > 1

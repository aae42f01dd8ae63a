"""Short names of settings: what all of a run have in common need not be said of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Plain = Mapping[str, Any]


def label(setting: Plain, beside: Sequence[Plain]) -> str:
    """Unlike that of any other of `beside`, settings as dicts; what differs in none of them is left out."""
    words = [answered_by(setting, beside), *_asked(setting, beside)]
    return ", ".join(words)


def answered_by(setting: Plain, beside: Sequence[Plain]) -> str:
    """Who answers, and after which guidance: all but how the question is put."""
    if setting["mode"] != "guided":
        return f"{setting['mode']} alone"
    return f"{line(setting, beside)}, m={setting['tokens']}"


def line(setting: Plain, beside: Sequence[Plain]) -> str:
    """The kind of guidance without its length: what a line of a figure joins."""
    guided = [one for one in beside if one["mode"] == "guided"]
    words = [setting["projection"]]
    if _differ("placement", guided):
        words.append(f"as {setting['placement']}")
    if _differ("boundary", guided):
        words.append(f"cut at a {setting['boundary']}")
    return " ".join(words)


def asked_in_words(setting: Plain) -> str:
    """How the question was put: form, exemplars, limit, sampling."""
    return ", ".join(_asked(setting, None))


def _asked(setting: Plain, beside: Sequence[Plain] | None) -> list[str]:
    words = {
        "form": "raw prompt" if setting["form"] == "completion" else "chat",
        "shots": f"{setting['shots'] or 'no'} exemplars",
        "max_tokens": f"at most {setting['max_tokens']} tokens",
        "temperature": f"temperature {setting['temperature']:g}" if setting["temperature"] else "greedy",
        "top_p": None if setting.get("top_p") is None else f"top_p {setting['top_p']:g}",
        "seed": None if setting.get("seed") is None else f"seed {setting['seed']}",
    }
    return [said for name, said in words.items() if said and (beside is None or _differ(name, beside))]


def _differ(name: str, beside: Sequence[Plain]) -> bool:
    return len({one.get(name) for one in beside}) > 1

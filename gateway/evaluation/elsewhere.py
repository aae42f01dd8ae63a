"""Routes of a gateway that runs somewhere: what each does is learnt from the receipt of one answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.errors import EngineError, StartupError
from gateway.evaluation.live import LiveRoute, body_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.evaluation.caller import Caller
    from gateway.evaluation.record import Manifest
    from gateway.evaluation.run import Work
    from gateway.ledger.receipt import Receipt


def routes_at(names: Sequence[str], work: Work) -> list[LiveRoute]:
    """Each of these routes with each way of asking; the settings of `work` say the ways, and all have mode student."""
    return [
        LiveRoute(name, f"route {name}, {setting.name.removeprefix('student, ')}", setting)
        for name in names
        for setting in work.settings
    ]


async def described(
    routes: Sequence[LiveRoute], caller: Caller, work: Work, manifest: Manifest | None
) -> list[dict[str, Any]]:
    """The routes as a manifest has settings. Those that it does not know are asked the first question, to learn it.

    Raises StartupError where a route does not answer.
    """
    known = {} if manifest is None else {setting["name"]: setting for setting in manifest.settings}
    return [known.get(route.name) or await _described(route, caller, work) for route in routes]


async def _described(route: LiveRoute, caller: Caller, work: Work) -> dict[str, Any]:
    try:
        heard = await caller.ask(body_of(route, work.questions[0], work))
    except EngineError as error:
        raise StartupError(f"--route {route.model}: {error.message}") from error
    plain = route.setting.as_dict() | {"name": route.name, "route": route.model}
    return plain | _what_it_does(heard.answered.receipt)


def _what_it_does(receipt: Receipt) -> dict[str, Any]:
    if receipt.guidance is None:
        return {"mode": receipt.mode}
    return {
        "mode": "guided",
        "tokens": receipt.guidance.tokens,
        "projection": receipt.guidance.projection,
        "placement": receipt.guidance.placement,
        "boundary": "word",
    }

"""Routes of a gateway that runs somewhere: what each does is learnt from the receipt of one answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.errors import EngineError, StartupError
from gateway.evaluation.live import LiveRoute, body_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.accounting.receipt import Receipt
    from gateway.evaluation.caller import GatewayClient
    from gateway.evaluation.record import Manifest
    from gateway.evaluation.run import EvalWork

# A route that chooses the guidance's length may go without for some questions, and then does not tell what it is.
_TRIES = 8


def routes_at(names: Sequence[str], work: EvalWork) -> list[LiveRoute]:
    """Each of these routes with each way of asking; the settings of `work` say the ways, and all have mode student."""
    return [
        LiveRoute(name, f"route {name}, {setting.name.removeprefix('student, ')}", setting)
        for name in names
        for setting in work.settings
    ]


async def described(
    routes: Sequence[LiveRoute], caller: GatewayClient, work: EvalWork, manifest: Manifest | None
) -> list[dict[str, Any]]:
    """The routes as a manifest has settings. Those that it does not know are asked the first question, to learn it;
    further ones, where a rule of theirs leaves that one without guidance.

    Raises StartupError where a route does not answer.
    """
    known = {} if manifest is None else {setting["name"]: setting for setting in manifest.settings}
    return [known.get(route.name) or await _described(route, caller, work) for route in routes]


async def _described(route: LiveRoute, caller: GatewayClient, work: EvalWork) -> dict[str, Any]:
    for question in work.questions[:_TRIES]:
        try:
            receipt = (await caller.ask(body_of(route, question, work))).answered.receipt
        except EngineError as error:
            raise StartupError(f"--route {route.model}: {error.message}") from error
        if receipt.guidance is not None or receipt.length is None:
            return route.setting.as_dict() | {"name": route.name, "route": route.model} | _what_it_does(receipt)
    raise StartupError(
        f"--route {route.model}: its rule for the guidance's length leaves the first questions without any, so its "
        "guidance is not known. Begin with others: --offset, or --sample."
    )


def _what_it_does(receipt: Receipt) -> dict[str, Any]:
    if receipt.guidance is None:
        return {"mode": receipt.mode}
    return {
        "mode": "guided",
        "tokens": receipt.guidance.tokens if receipt.length is None else "auto",
        "projection": receipt.guidance.projection,
        "placement": receipt.guidance.placement,
        "boundary": "word",
    }

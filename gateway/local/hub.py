"""Downloads one file from the Hugging Face hub, and fails fast if the hub is unreachable."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import constants, get_session, hf_hub_download, hf_hub_url
from huggingface_hub.utils.tqdm import tqdm

from gateway.local import WeightsUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

REACH_LIMIT_S = 4.0


def download(repo: str, file: str, staging: Path, *, report: Callable[[int], None]) -> Path:
    """Download `file` of the model `repo` into `staging` and return its path. Interrupted downloads are resumed.

    Call `report` with the number of bytes so far. Raises WeightsUnavailable if HF_HUB_OFFLINE is set, or the hub failed
    or did not answer in `REACH_LIMIT_S` seconds.
    """
    if constants.HF_HUB_OFFLINE:
        raise WeightsUnavailable("the hub is disabled (HF_HUB_OFFLINE is set)")
    _reach(hf_hub_url(repo, file))
    try:
        path = hf_hub_download(
            repo,
            file,
            local_dir=staging,
            etag_timeout=REACH_LIMIT_S,
            tqdm_class=_bar(report),
        )
    except Exception as error:
        # All exceptions: the hub's client raises those of several HTTP libraries.
        raise WeightsUnavailable(f"the download from the hub failed ({type(error).__name__})") from error
    return Path(path)


def _reach(url: str) -> None:
    """Send one request without retries. The hub's client retries for half a minute without a network."""
    failures: list[str] = ["no answer"]

    def send_head() -> None:
        try:
            reply = get_session().head(url, timeout=REACH_LIMIT_S, follow_redirects=False)
        except Exception as error:  # noqa: BLE001 (any failure means that the hub is unreachable)
            failures[0] = type(error).__name__
            return
        if reply.status_code < 400:
            failures.clear()
        else:
            failures[0] = f"HTTP {reply.status_code}"

    # In a thread, since name resolution has no timeout.
    thread = threading.Thread(target=send_head, name="hub-reach", daemon=True)
    thread.start()
    thread.join(REACH_LIMIT_S)
    if failures:
        raise WeightsUnavailable(f"the hub is unreachable ({failures[0]})")


def _bar(report: Callable[[int], None]) -> type[tqdm]:

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._done_bytes = int(kwargs.get("initial") or 0)
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            self._done_bytes += int(n or 0)
            report(self._done_bytes)

    return Bar

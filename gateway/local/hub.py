"""One file from the Hugging Face hub, without a long wait where the hub cannot be reached."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from huggingface_hub import constants, get_session, hf_hub_download, hf_hub_url
from huggingface_hub.utils.tqdm import tqdm

from gateway.local import WeightsUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

REACH_LIMIT_S = 4.0


def download(
    repo: str,
    file: str,
    staging: Path,
    *,
    report: Callable[[int], None],
    endpoint: str | None = None,
    kind: Literal["model", "dataset"] = "model",
) -> Path:
    """Download `file` of `repo` under `staging` and return its path. A download that was cut short is resumed.

    `report` is called with the bytes done so far. `endpoint` replaces the hub's own address. `kind` is what the
    repository holds.

    Raises:
        WeightsUnavailable: the hub is switched off (HF_HUB_OFFLINE), did not answer in `REACH_LIMIT_S`, or failed.
    """
    if constants.HF_HUB_OFFLINE:
        raise WeightsUnavailable("the hub is switched off (HF_HUB_OFFLINE)")
    _reach(hf_hub_url(repo, file, repo_type=kind, endpoint=endpoint))
    try:
        path = hf_hub_download(
            repo,
            file,
            repo_type=kind,
            local_dir=staging,
            etag_timeout=REACH_LIMIT_S,
            endpoint=endpoint,
            tqdm_class=_bar(report),
        )
    except Exception as error:
        # Everything: the hub's client lets several HTTP libraries' errors through.
        raise WeightsUnavailable(f"the hub failed ({type(error).__name__})") from error
    return Path(path)


def _reach(url: str) -> None:
    """One plain request. The client's own retries would take half a minute to say that there is no network."""
    failures: list[str] = ["no answer"]

    def ask() -> None:
        try:
            reply = get_session().head(url, timeout=REACH_LIMIT_S, follow_redirects=False)
        except Exception as error:  # noqa: BLE001 (any failure has one meaning here: the hub is not for us today)
            failures[0] = type(error).__name__
            return
        if reply.status_code < 400:
            failures.clear()
        else:
            failures[0] = f"HTTP {reply.status_code}"

    # A thread, because no timeout bounds the name lookup.
    thread = threading.Thread(target=ask, name="hub-reach", daemon=True)
    thread.start()
    thread.join(REACH_LIMIT_S)
    if failures:
        raise WeightsUnavailable(f"the hub cannot be reached ({failures[0]})")


def _bar(report: Callable[[int], None]) -> type[tqdm]:
    """A silent progress bar class which tells `report`."""

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._done_bytes = int(kwargs.get("initial") or 0)
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            self._done_bytes += int(n or 0)
            report(self._done_bytes)

    return Bar

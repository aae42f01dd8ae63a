"""GET /policies: the policies in use, for holders of the admin key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx

from tests.gateway_process import STUDENT_ONLY, model, running_gateway

if TYPE_CHECKING:
    from pathlib import Path

ADMIN_KEY = "an-admin-key-for-tests"


def test_policies_are_listed_and_require_the_key(redis_url: str, tmp_path: Path) -> None:
    with running_gateway(
        tmp_path,
        models=[model(name, "openai", "http://127.0.0.1:9/v1", continuation="trailing") for name in ("big", "small")],
        routes=[STUDENT_ONLY],
        redis_url=redis_url,
        admin={"key": "env:THE_ADMIN_KEY"},
        environ={"THE_ADMIN_KEY": ADMIN_KEY},
    ) as gateway:
        url = f"{gateway.admin_url}/policies"
        assert httpx.get(url).status_code == 401
        shown = {"Authorization": f"Bearer {ADMIN_KEY}"}
        seen = httpx.get(url, headers=shown).json()
        assert (seen["files"], seen["stale"]) == (2, False)
        assert [(one["tenant"], one["routes"][0]["model"]) for one in seen["data"]] == [
            ("acme", "chat-student"),
            ("globex", "chat-student"),
        ]
        assert ADMIN_KEY not in str(seen)
        wrong = httpx.get(f"{url}?x=1", headers=shown)
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "x")

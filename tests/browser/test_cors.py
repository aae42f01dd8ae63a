"""A page of another origin calls both listeners from a real browser."""

from __future__ import annotations

import threading
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.conftest import ADMIN_KEY
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, STUDENT_ONLY, GatewayProcess, model, running_gateway

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from playwright.async_api import Browser, Page

pytestmark = pytest.mark.asyncio(loop_scope="session")

# Return the outcome of a request as a script sees it: status, text and two headers, or the error of fetch.
CALL = """
async ([url, options]) => {
  try {
    const reply = await fetch(url, options);
    const text = await reply.text();
    return {status: reply.status, text, id: reply.headers.get("x-request-id"), mode: reply.headers.get("x-gkt-mode")};
  } catch (error) {
    return {failed: error.name};
  }
}
"""
BLOCKED = {"failed": "TypeError"}


class _EmptyPage(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>app</title>")

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def page_server() -> Iterator[int]:
    """Serve an empty page on every path. Yield the port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _EmptyPage) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def world(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[GatewayProcess, int]]:
    """Run a gateway, and a page server whose origin with the host 127.0.0.1 both listeners allow."""
    with page_server() as port, FakeEngine(says("Hi there")).running() as engine:
        cors = {"origins": [f"http://127.0.0.1:{port}"]}
        with running_gateway(
            tmp_path_factory.mktemp("cors"),
            redis_url=redis_url,
            models=[model("big", "tgi", engine.url), model("small", "openai", f"{engine.url}/v1", continuation="none")],
            routes=[STUDENT_ONLY],
            server={"cors": cors},
            admin={"key": "env:CORS_ADMIN_KEY", "cors": cors},
            environ={"CORS_ADMIN_KEY": ADMIN_KEY},
        ) as gateway:
            yield gateway, port


@asynccontextmanager
async def page_at(browser: Browser, origin: str) -> AsyncIterator[Page]:
    context = await browser.new_context()
    try:
        page = await context.new_page()
        await page.goto(origin)
        yield page
    finally:
        await context.close()


def chat(key: str = KEY, **fields: Any) -> dict[str, Any]:
    """Return the options of a request that a browser sends only after a preflight."""
    body = {"model": "chat-student", "messages": [{"role": "user", "content": "Hello"}], **fields}
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", "X-Stainless-Lang": "js"}
    return {"method": "POST", "headers": headers, "json": body}


async def call(page: Page, url: str, options: dict[str, Any]) -> dict[str, Any]:
    """Call fetch in the page. Return what the script gets."""
    init = {name: value for name, value in options.items() if name != "json"}
    if "json" in options:
        init["body"] = await page.evaluate("JSON.stringify", options["json"])
    outcome: dict[str, Any] = await page.evaluate(CALL, [url, init])
    return outcome


async def test_a_page_of_an_allowed_origin_reads_answers_streams_and_errors(
    browser: Browser, world: tuple[GatewayProcess, int]
) -> None:
    gateway, port = world
    url = f"{gateway.url}/v1/chat/completions"
    async with page_at(browser, f"http://127.0.0.1:{port}") as page:
        answer = await call(page, url, chat())
        assert (answer["status"], answer["mode"], answer["id"][:4]) == (200, "student", "req_")
        assert '"content":"Hi there"' in answer["text"]
        stream = await call(page, url, chat(stream=True))
        assert (stream["status"], stream["mode"]) == (200, "student")
        assert stream["text"].endswith("data: [DONE]\n\n")
        for options, status in ((chat("wrong"), 401), (chat(n=0), 400)):
            failed = await call(page, url, options)
            assert (failed["status"], failed["id"][:4]) == (status, "req_")
        assert (await call(page, f"{gateway.url}/v1/nothing", {}))["status"] == 404


async def test_a_page_of_another_origin_reads_nothing(browser: Browser, world: tuple[GatewayProcess, int]) -> None:
    """The host of an origin counts as it is written."""
    gateway, port = world
    async with page_at(browser, f"http://localhost:{port}") as page:
        assert await call(page, f"{gateway.url}/v1/chat/completions", chat()) == BLOCKED
        assert await call(page, f"{gateway.url}/healthz", {}) == BLOCKED
        assert await call(page, f"{gateway.admin_url}/queue", {}) == BLOCKED


async def test_a_page_uses_the_admin_key_and_no_session(browser: Browser, world: tuple[GatewayProcess, int]) -> None:
    """The origin has another port of the listener's host, so the browser would send its cookie."""
    gateway, port = world
    async with page_at(browser, f"{gateway.admin_url}/login") as page:
        await page.get_by_label("Admin key", exact=True).fill(ADMIN_KEY)
        await page.get_by_role("button", name="Log in").click()
        await page.wait_for_url("**/dashboard")
        await page.goto(f"http://127.0.0.1:{port}")
        policies = f"{gateway.admin_url}/policies"
        keyed = await call(page, policies, {"headers": {"Authorization": f"Bearer {ADMIN_KEY}"}})
        assert keyed["status"] == 200
        assert (await call(page, policies, {}))["status"] == 401
        assert await call(page, policies, {"credentials": "include"}) == BLOCKED

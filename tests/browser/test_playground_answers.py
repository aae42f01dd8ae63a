"""The playground over replies of the test: truncated answers, guidance that streams, and the copied policy."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from playwright.async_api import expect
from ruamel.yaml import YAML

from tests.browser import world
from tests.browser.conftest import accessible, logged_in, shoot

if TYPE_CHECKING:
    from playwright.async_api import Browser, Route

    from tests.gateway_process import GatewayProcess

pytestmark = pytest.mark.asyncio(loop_scope="session")


def _events(request: dict[str, Any], finish_reason: str) -> str:
    """Return a run as its events. A guided answer begins with two pieces of guidance."""
    pieces: list[tuple[str, str]] = [("", "because of "), ("", "scattering.")]
    if request["mode"] == "guided":
        pieces = [("The sky ", "The sky "), ("is blue ", "is blue "), *pieces]
    chunks = [
        {"choices": [{"index": 0, "delta": {"content": text}}], **({"x_gkt": {"opening": opening}} if opening else {})}
        for opening, text in pieces
    ]
    number = ("teacher", "student", "guided").index(request["mode"])
    receipt = world.receipts({})["data"][number] | {"mode": request["mode"], "finish_reason": finish_reason}
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return "".join([*lines, f"event: receipt\ndata: {json.dumps(receipt)}\n\n", "data: [DONE]\n\n"])


async def test_truncated_answers_are_reported(browser: Browser, pages: GatewayProcess) -> None:
    async def answer(route: Route) -> None:
        request = json.loads(route.request.post_data or "{}")
        reason = "stop" if request["mode"] == "student" else "length"
        await route.fulfill(body=_events(request, reason), content_type="text/event-stream")

    async with logged_in(browser, pages, "/playground#tenant=acme&model=chat&max_tokens=24") as page:
        await page.route("**/playground/run", answer)
        await page.get_by_label("Question").fill("Why is the sky blue?")
        await page.get_by_role("button", name="Ask all three").click()
        guided = page.locator("[data-mode=guided]")
        await expect(guided.locator(".state")).to_have_text("done, truncated")
        await expect(guided.locator(".note")).to_contain_text("Truncated: the answer reached max tokens (24).")
        await expect(guided.locator("mark")).to_have_text("The sky is blue ")
        await expect(guided.locator(".words")).to_have_text("because of scattering.")
        await expect(page.locator("[data-mode=student] .state")).to_have_text("done")
        await expect(page.locator("#summary")).to_contain_text("Truncated: teacher alone, guided.")
        assert await accessible(page) == []
        await shoot(page, "playground-truncated")


async def test_guidance_is_shown_while_the_teacher_writes(browser: Browser, pages: GatewayProcess) -> None:
    """The run does not end before the test has seen the first guidance."""
    start = """() => {
      const real = fetch;
      window.fetch = (path, options) => {
        if (path !== '/playground/run' || JSON.parse(options.body).mode !== 'guided') return real(path, options);
        const chunk = (text) => ({choices: [{delta: {content: text}}], x_gkt: {opening: text}});
        const event = (text) => `data: ${JSON.stringify(chunk(text))}\\n\\n`;
        const body = new ReadableStream({start(stream) {
          window.write = (text) => stream.enqueue(new TextEncoder().encode(event(text)));
          options.signal.addEventListener('abort', () => stream.error(options.signal.reason));
        }});
        return Promise.resolve(new Response(body, {headers: {'x-request-id': 'req_1'}}));
      };
    }"""
    async with logged_in(browser, pages, "/playground#tenant=acme&model=chat", forgive="404") as page:
        await expect(page.get_by_role("button", name="Ask all three")).to_be_enabled()
        await page.evaluate(start)
        await page.get_by_label("Question").fill("Why?")
        await page.get_by_role("button", name="Ask all three").click()
        await page.wait_for_function("Boolean(window.write)")
        for text, shown in (("The ", "The "), ("sky", "The sky")):
            await page.evaluate("text => window.write(text)", text)
            await expect(page.locator("[data-mode=guided] mark")).to_have_text(shown)
        await expect(page.locator("[data-mode=guided]")).to_have_attribute("data-state", "writing")
        await page.get_by_role("button", name="Stop").click()
        await expect(page.locator("[data-mode=guided]")).to_have_attribute("data-state", "stopped")


async def test_guidance_that_only_the_student_sees_is_shown_beside_the_answer(
    browser: Browser, pages: GatewayProcess
) -> None:
    async def answer(route: Route) -> None:
        events = _events({"mode": "student"}, "stop")
        hidden = f"event: guidance\ndata: {json.dumps({'text': 'Think of scattering.'})}\n\n"
        guided = json.loads(route.request.post_data or "{}")["mode"] == "guided"
        body = hidden + events if guided else events
        await route.fulfill(body=body, content_type="text/event-stream")

    async with logged_in(
        browser, pages, "/playground#tenant=acme&model=chat&projection=hint&placement=context"
    ) as page:
        await page.route("**/playground/run", answer)
        await page.get_by_label("Question").fill("Why is the sky blue?")
        await page.get_by_role("button", name="Ask all three").click()
        guided = page.locator("[data-mode=guided]")
        await expect(guided).to_have_attribute("data-state", "done")
        await expect(guided.locator(".hidden-guidance mark")).to_have_text("Think of scattering.")
        await expect(guided.locator(".words")).to_have_text("because of scattering.")


async def test_the_copied_policy_has_the_settings_of_the_page(browser: Browser, pages: GatewayProcess) -> None:
    rights = ["clipboard-read", "clipboard-write"]
    async with logged_in(browser, pages, "/playground#tenant=acme&model=chat", permissions=rights) as page:
        await page.get_by_label("Question").fill("Why?")
        await page.get_by_label("Length, in the teacher's tokens").fill("7")
        await page.get_by_label("Projection").select_option("hint")
        await page.get_by_role("button", name="Copy as policy").click()
        await expect(page.locator("#copied")).to_contain_text("Copied as policy")
        (route,) = YAML(typ="safe").load(await page.evaluate("navigator.clipboard.readText()"))["routes"]
        assert route == {
            "model": "chat",
            "mode": "guided",
            "teacher": "big",
            "student": "small",
            "guidance": {"tokens": 7, "projection": "hint", "placement": "context"},
        }


async def test_another_route_resets_the_settings(browser: Browser, pages: GatewayProcess) -> None:
    async with logged_in(browser, pages, "/playground#tenant=acme&model=chat&tokens=7&seed=3") as page:
        await expect(page.get_by_label("Length, in the teacher's tokens")).to_have_value("7")
        await page.get_by_label("Route").select_option("chat-compared")
        await expect(page.get_by_label("Length, in the teacher's tokens")).to_have_value("12")
        await expect(page).to_have_url(re.compile("#tenant=acme&model=chat-compared$"))
        await expect(page.locator("[data-state=idle]")).to_have_count(3)

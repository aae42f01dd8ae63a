"""The playground in a real browser with real models: streams, the marked guidance, and copied requests."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from playwright.async_api import expect

from tests.browser.conftest import ADMIN_KEY, accessible, log_in, opened, shoot
from tests.gateway_process import KEY, STUDENT_ONLY, TEACHER_ONLY, guided, local_models, model, running_gateway
from tests.readiness import wait_until_probed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from playwright.async_api import Browser, Page

    from gateway.local.stack import LocalStack
    from tests.gateway_process import GatewayProcess

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.models, pytest.mark.timeout(240)]

ANSWERED_MS = 90_000  # real models, on a machine that may be busy
MODES = ("teacher", "student", "guided")
PHONE = {"width": 390, "height": 844}
# Collects every text of each answer. A stream has many.
SEES = """() => { window.seen = {}; for (const column of document.querySelectorAll('.column')) {
  const texts = window.seen[column.dataset.mode] = new Set(), answer = column.querySelector('.answer');
  const note = new MutationObserver(() => texts.add(answer.textContent));
  note.observe(answer, {subtree: true, childList: true, characterData: true});
} }"""


@pytest.fixture(scope="session")
def playground(
    engines: LocalStack, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """Run a gateway with real engines, with a route whose student is down and a route that allows overrides."""
    down = model("gone", "openai", "http://127.0.0.1:9/v1", continuation="trailing")
    with running_gateway(
        tmp_path_factory.mktemp("playground"),
        models=[*local_models(engines), down],
        routes=[
            guided(cache_ttl="0s"),
            guided("chat-open", cache_ttl="0s")
            | {"overrides": {"modes": ["teacher", "student"], "guidance_tokens": 64}},
            guided("chat-gone", student="gone", cache_ttl="0s"),
            STUDENT_ONLY,
            TEACHER_ONLY,
        ],
        redis_url=redis_url,
        redis={"prefix": "playground-pages", "timeout": "2s"},
        admin={"key": "env:PAGES_ADMIN_KEY"},
        environ={"PAGES_ADMIN_KEY": ADMIN_KEY},
    ) as process:
        wait_until_probed(process.admin_url, "big", "small")
        yield process


@asynccontextmanager
async def at_the_playground(
    browser: Browser,
    gateway: GatewayProcess,
    settings: str = "tenant=acme&model=chat&max_tokens=24&temperature=0",
    **more: Any,
) -> AsyncIterator[Page]:
    """Open the playground with settings in the URL, and log in. The login keeps the settings."""
    async with opened(browser, gateway, path=f"/playground#{settings}", **more) as page:
        await log_in(page)
        await expect(page.get_by_role("button", name="Ask all three")).to_be_enabled()
        yield page


async def ask(page: Page, question: str = "List the planets.") -> None:
    await page.get_by_label("Question").fill(question)
    await page.get_by_role("button", name="Ask all three").click()


async def ends(page: Page, mode: str, state: str = "done") -> None:
    await expect(page.locator(f"[data-mode={mode}]")).to_have_attribute("data-state", state, timeout=ANSWERED_MS)


def figure(page: Page, mode: str, name: str) -> Any:
    return page.locator(f"[data-mode={mode}] .figures > div", has=page.get_by_text(name, exact=False)).locator("dd")


async def receipt_of(gateway: GatewayProcess, seen: int, *modes: str, key: str = "playground") -> dict[str, Any]:
    """Return the first receipt of this key in one of these modes, after the first `seen` lines of the log."""
    for _ in range(400):
        for line in gateway.log[seen:]:
            if line.get("event") == "request" and line["key"] == key and line["mode"] in modes:
                return line
        await asyncio.sleep(0.05)
    raise AssertionError(f"no receipt in mode {modes}")


async def test_three_answers_stream_and_the_teachers_words_are_marked(
    browser: Browser, playground: GatewayProcess
) -> None:
    """The marked text is the start of the teacher's answer. The seam shows the number of tokens of the receipt."""
    async with at_the_playground(browser, playground) as page:
        await shoot(page, "playground-empty")
        assert await accessible(page) == []
        seen = len(playground.log)
        await page.evaluate(SEES)
        await ask(page)
        await expect(page.get_by_role("button", name="Stop")).to_be_enabled()
        for mode in MODES:
            await ends(page, mode)
        for mode in MODES:
            texts = await page.evaluate(f"[...window.seen.{mode}]")
            assert len(texts) >= 4, f"{mode} came at once: {texts}"
        marked = await page.locator("[data-mode=guided] mark").text_content()
        alone = await page.locator("[data-mode=teacher] .answer").text_content()
        assert marked
        assert alone
        assert alone.startswith(marked)
        assert await page.locator("[data-mode=guided] .words").text_content()
        assert await page.locator("mark").count() == 1

        receipt = await receipt_of(playground, seen, "guided")
        kept = receipt["guidance"]["kept_tokens"]
        await page.locator(".seam").hover()
        await expect(page.get_by_role("tooltip")).to_contain_text(f"wrote {kept} token")
        written = receipt["teacher"]["output_tokens"] + receipt["student"]["output_tokens"]
        await expect(figure(page, "guided", "Tokens written")).to_contain_text(str(written))
        for mode in MODES:
            one = await receipt_of(playground, seen, mode)
            shown = await figure(page, mode, "Cost").locator(":scope").evaluate("(dd) => dd.firstChild.textContent")
            assert float(shown.removeprefix("$")) == pytest.approx(float(one["cost_usd"]), rel=0.05)
            await expect(figure(page, mode, "First token")).to_have_text(re.compile(r"\d ?(ms|s)$"))
        await expect(page.locator("#summary")).to_contain_text("Guided cost")
        await expect(page.locator("#summary")).to_contain_text("The student alone cost")
        assert await accessible(page) == []
        await shoot(page, "playground-done")


@pytest.mark.long
async def test_length_and_placement_change_the_guided_answer_and_the_url(
    browser: Browser, playground: GatewayProcess
) -> None:
    async with at_the_playground(browser, playground) as page:
        await page.get_by_label("Length, in the teacher's tokens").fill("5")
        assert await page.locator("#slider").input_value() == "5"
        seen = len(playground.log)
        await ask(page, "Why is the sky blue?")
        await ends(page, "guided")
        receipt = await receipt_of(playground, seen, "guided")
        assert receipt["guidance"]["tokens"] == 5
        for mode in MODES:
            await ends(page, mode)

        await page.get_by_label("Projection").select_option("hint")
        assert await page.get_by_label("Placement").input_value() == "context", "the default placement of a hint"
        assert "tokens=5&projection=hint&placement=context" in page.url
        assert "sky" not in page.url
        seen = len(playground.log)
        await page.get_by_role("button", name="Ask all three").click()
        for mode in MODES:
            await ends(page, mode)
        receipt = await receipt_of(playground, seen, "guided")
        assert (receipt["guidance"]["projection"], receipt["guidance"]["placement"]) == ("hint", "context")
        assert await page.locator(".answer mark").count() == 0
        await expect(page.locator("[data-mode=guided] .hidden-guidance mark")).not_to_be_empty()
        await expect(page.locator("[data-mode=guided] .note")).to_contain_text("is in the student's prompt")

        await page.reload()
        await expect(page.get_by_label("Projection")).to_have_value("hint")
        await expect(page.get_by_label("Length, in the teacher's tokens")).to_have_value("5")
        await expect(page.get_by_label("Question")).to_have_value("")
        await page.get_by_role("button", name="Reset to the route's settings").click()
        await expect(page.get_by_label("Projection")).to_have_value("cutoff")
        await expect(page.get_by_label("Placement")).to_have_value("prefix")
        await expect(page.get_by_label("Length, in the teacher's tokens")).to_have_value("12")
        assert page.url.endswith("#tenant=acme&model=chat")


async def test_unknown_values_in_the_url_are_reported(browser: Browser, playground: GatewayProcess) -> None:
    async with at_the_playground(
        browser, playground, "tenant=nobody&model=chat&tokens=99999&placement=end&temperature=0.5"
    ) as page:
        await expect(page.locator("#status")).to_contain_text("tenant nobody, placement end, tokens 99999")
        await expect(page.get_by_label("Temperature")).to_have_value("0.5")


@pytest.mark.long
async def test_an_engine_that_is_down_fails_in_its_columns_and_the_others_finish(
    browser: Browser, playground: GatewayProcess
) -> None:
    async with at_the_playground(
        browser, playground, "tenant=acme&model=chat-gone&max_tokens=24", forgive="50[0-9]"
    ) as page:
        await expect(page.locator("#status")).to_contain_text("Unavailable now: gone.")
        await ask(page)
        await ends(page, "student", "failed")
        await ends(page, "guided", "failed")
        await ends(page, "teacher")
        for mode in ("student", "guided"):
            await expect(page.locator(f"[data-mode={mode}] .problem")).to_contain_text("'gone'")
        assert await page.locator("[data-mode=teacher] .words").text_content()
        assert await accessible(page) == []
        await shoot(page, "playground-failed")


@pytest.mark.long
async def test_stop_cancels_the_answers_and_is_on_their_receipts(browser: Browser, playground: GatewayProcess) -> None:
    async with at_the_playground(browser, playground, "tenant=acme&model=chat&max_tokens=800") as page:
        seen = len(playground.log)
        await ask(page, "Tell me a very long story about a lighthouse, with many chapters.")
        await ends(page, "guided", "writing")
        await page.get_by_role("button", name="Stop").click()
        await ends(page, "guided", "stopped")
        receipt = await receipt_of(playground, seen, "guided")
        assert receipt["status"] == "client_gone"
        await expect(page.locator("[data-mode=guided] .note")).to_contain_text("client_gone")
        await expect(figure(page, "guided", "Cost")).to_contain_text("$")
        await expect(page.get_by_role("button", name="Ask all three")).to_be_enabled()


async def test_another_route_cancels_the_running_answers(browser: Browser, playground: GatewayProcess) -> None:
    async with at_the_playground(browser, playground, "tenant=acme&model=chat&max_tokens=800") as page:
        seen = len(playground.log)
        await ask(page, "Tell me a very long story about a mountain, with many chapters.")
        await ends(page, "guided", "writing")
        await page.get_by_label("Route").select_option("chat-open")
        assert (await receipt_of(playground, seen, "guided"))["status"] == "client_gone"
        await expect(page.get_by_role("button", name="Ask all three")).to_be_enabled()
        assert await page.locator("[data-state=idle]").count() == 3
        assert await page.locator(".figures").all_inner_texts() == [
            "First token\n-\nTotal\n-\nTokens written\n-\nCost\n-\nSaved\n-"
        ] * 3  # fmt: skip


@pytest.mark.long
async def test_the_copied_command_runs(browser: Browser, playground: GatewayProcess) -> None:
    """Only the key must be replaced. The request has the mode and length of the page, if callers may set them."""
    rights = ["clipboard-read", "clipboard-write"]
    async with at_the_playground(
        browser,
        playground,
        "tenant=acme&model=chat-open&tokens=7&max_tokens=16&temperature=0.5&seed=3",
        permissions=rights,
    ) as page:
        await page.get_by_label("Question").fill('What\'s "2 + 2"? \\ $HOME `id`\nÜber 🌍.')
        for mode, title in zip(MODES, ("Teacher alone", "Student alone", "Guided"), strict=True):
            for kind, program in (("curl", ["bash", "-c"]), ("Python", [sys.executable, "-W", "error", "-c"])):
                seen = len(playground.log)
                await page.get_by_role("button", name=f"Copy as {kind}: {title}").click()
                await expect(page.locator("#copied")).to_contain_text(f"Copied as {kind}")
                text = await page.evaluate("navigator.clipboard.readText()")
                assert KEY not in text
                assert f"{playground.url}/v1" in text
                ran = await asyncio.to_thread(
                    subprocess.run,
                    [*program, text.replace("YOUR_KEY", KEY)],
                    capture_output=True,
                    text=True,
                    timeout=60,
                )
                assert ran.returncode == 0, ran.stderr
                assert ('"chat.completion"' in ran.stdout) if kind == "curl" else ran.stdout.strip()
                modes = (mode, "teacher_complete") if mode == "guided" else (mode,)
                receipt = await receipt_of(playground, seen, *modes, key="only")
                if mode == "guided":
                    assert receipt["guidance"]["tokens"] == 7

        await page.get_by_label("Route").select_option("chat")
        await page.get_by_role("button", name="Copy as Python: Teacher alone").click()
        await expect(page.locator("#copied")).to_contain_text("its policy does not allow teacher")
        assert "# Differs from the playground" in await page.evaluate("navigator.clipboard.readText()")


async def test_where_the_browser_copies_nothing_the_text_is_shown(browser: Browser, playground: GatewayProcess) -> None:
    async with at_the_playground(browser, playground) as page:
        await page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('no')); }")
        await page.get_by_label("Question").fill("Why?")
        await page.get_by_role("button", name="Copy as curl: Guided").click()
        await expect(page.get_by_role("textbox", name="Copy this")).to_have_value(re.compile("^curl -sS"))
        assert await accessible(page) == []
        await page.get_by_role("button", name="Close").click()


@pytest.mark.long
async def test_the_playground_works_by_keyboard(browser: Browser, playground: GatewayProcess) -> None:
    async with at_the_playground(browser, playground) as page:
        await page.keyboard.press("Tab")
        await expect(page.get_by_text("Skip to content")).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(page.locator("#main")).to_be_focused()
        for _ in ("Pause", "Question"):
            await page.keyboard.press("Tab")
        await expect(page.get_by_label("Question")).to_be_focused()
        await page.keyboard.type("List the planets.")
        for _ in range(40):
            await page.keyboard.press("Tab")
            if await page.evaluate("document.activeElement.id") == "slider":
                break
        await page.keyboard.press("ArrowRight")
        await expect(page.get_by_label("Length, in the teacher's tokens")).to_have_value("13")
        await page.keyboard.press("Control+Enter")
        for mode in MODES:
            await ends(page, mode)
        for _ in range(40):
            await page.keyboard.press("Tab")
            if await page.evaluate("document.activeElement.className") == "seam":
                break
        await expect(page.get_by_role("tooltip")).to_be_visible()
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("tooltip")).to_be_hidden()
        await expect(page.locator("#live")).to_contain_text("Guided cost")


async def test_no_request_is_sent_without_a_question(browser: Browser, playground: GatewayProcess) -> None:
    async with at_the_playground(browser, playground) as page:
        await page.get_by_role("button", name="Ask all three").click()
        await expect(page.get_by_label("Question")).to_be_focused()
        await page.get_by_label("Question").fill("Why?")
        await page.get_by_label("Temperature").fill("3")
        await page.get_by_role("button", name="Ask all three").click()
        await expect(page.get_by_label("Temperature")).to_be_focused()
        assert await page.locator("[data-state=idle]").count() == 3


@pytest.mark.long
async def test_answers_are_stacked_on_a_phone(browser: Browser, playground: GatewayProcess) -> None:
    async with at_the_playground(browser, playground, viewport=PHONE, color_scheme="dark") as page:
        await expect(page.get_by_label("Projection")).to_be_hidden()
        await ask(page)
        for mode in MODES:
            await ends(page, mode)
        await page.locator("#settings > summary").click()
        await expect(page.get_by_label("Projection")).to_be_visible()
        assert await page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        tops = [(await page.locator(f"[data-mode={mode}]").bounding_box() or {})["y"] for mode in MODES]
        assert tops == sorted(set(tops))
        await page.locator(".seam").focus()
        assert await accessible(page) == []
        await shoot(page, "playground-phone")

"""The web page in a real browser, before a demo under load."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from corral.gateway.serve.snapshot import snapshot_json
from tests.gateway.serve import history
from tests.web.stack import FLAGS, Relay, Stack, running_demo, until

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("needs Debian's package chromium", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api")

WAIT_MS = 20_000
CONTRAST = """() => {
  const probe = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const paint = (colours) => {
    probe.clearRect(0, 0, 1, 1);
    for (const colour of colours) { probe.fillStyle = colour; probe.fillRect(0, 0, 1, 1); }
    return [...probe.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const bad = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || node.closest("svg, script, noscript, .hidden, .skip, [hidden], dialog:not([open])")) continue;
    const behind = [];
    for (let at = node; at; at = at.parentElement) behind.unshift(getComputedStyle(at).backgroundColor);
    const back = paint(behind);
    const [a, b] = [light(back), light(paint([`rgb(${back})`, getComputedStyle(node).color]))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) bad.push(`${node.tagName} .${node.className} ${node.textContent} ${ratio.toFixed(2)}`);
  }
  return [...new Set(bad)];
}"""


NAMELESS = """() => [...document.querySelectorAll("button, input, select, [role=img], [role=meter], section")]
  .filter((node) => !node.closest("dialog:not([open])"))
  .filter((node) => !(node.ariaLabel || node.textContent.trim() || node.labels?.[0]?.textContent.trim()
    || document.getElementById(node.getAttribute("aria-labelledby"))?.textContent.trim()))
  .map((node) => node.outerHTML)"""
"""Buttons, fields and pictures that a screen reader could only call by what they are."""


FLOWN = """() => {
  window.flown = 0;
  const count = (changes) => { window.flown += changes.length; };
  new MutationObserver(count).observe(document.querySelector("#flow .flights"), { childList: true });
}"""


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_demo() as made:
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield chromium
        chromium.close()


class Visitor:
    """A browser window of its own, and what its console complained of."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": 1400, "height": 1000}, **options)
        self.complaints: list[str] = []
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT_MS)
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.url = url

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def open(self, address: str = "") -> Any:
        """The page, as soon as it shows something live."""
        self.page.goto(f"{self.url}/{address}")
        self.page.wait_for_selector('html[data-stream="live"] #recent-rows tr')
        return self.page


@pytest.fixture
def visitor(browser: Any, stack: Stack) -> Iterator[Visitor]:
    made = Visitor(browser, stack.admin)
    yield made
    made.context.close()
    assert made.complaints == []


def text(page: Any, selector: str) -> str:
    found: str = page.locator(selector).first.inner_text()
    return found


def test_it_shows_the_box_and_it_moves(visitor: Visitor, stack: Stack) -> None:
    page = visitor.open()
    assert page.title().endswith("Corral")
    assert page.evaluate(NAMELESS) == []
    assert [each.inner_text() for each in page.locator(".card h3").all()] == ["rtx-3060", "rtx-4090", "rtx-5090"]
    first = page.locator("#recent-rows tr").first.get_attribute("data-number")
    page.wait_for_function("n => document.querySelector('#recent-rows tr').dataset.number > n", arg=int(first))
    page.wait_for_function("() => Number(document.getElementById('fig-rate').textContent.replace(',', '')) > 10")
    page.wait_for_selector("#flow .seat.taken", state="attached")
    page.wait_for_selector("#flow .flight", state="attached")
    used = "[aria-label^='use of GPU']"
    page.wait_for_function(f'() => [...document.querySelectorAll("{used}")].some((bar) => bar.ariaValueNow > 0)')
    page.wait_for_function("() => document.querySelector('.spark .line').getAttribute('d').length > 20")
    asked = page.evaluate("() => performance.getEntriesByType('resource').map((one) => new URL(one.name).origin)")
    assert set(asked) == {stack.admin}


def test_a_replica_is_drained_by_a_click_and_that_is_undone(visitor: Visitor, stack: Stack) -> None:
    page = visitor.open()
    page.click('[aria-label="drain rtx-4090"]')
    assert "gets no new requests" in text(page, "#confirm-text")
    page.click("#confirm-yes")
    page.wait_for_selector('[data-replica="rtx-4090"] .word:text-is("drained")')
    assert stack.replica("rtx-4090")["enabled"] is False
    page.click('.toast button:text-is("Undo")')
    page.wait_for_selector('[data-replica="rtx-4090"] .word:text-is("up")')
    assert stack.replica("rtx-4090")["enabled"] is True


def test_what_is_cancelled_is_not_done(visitor: Visitor, stack: Stack) -> None:
    page = visitor.open()
    posted: list[str] = []
    page.on("request", lambda request: posted.append(request.method))
    page.click('[aria-label="drain rtx-3060"]')
    page.click("#confirm button[value=no]")
    page.wait_for_selector("#confirm", state="hidden")
    page.click('[aria-label="drain rtx-3060"]')
    page.keyboard.press("Escape")
    page.wait_for_selector("#confirm", state="hidden")
    assert "POST" not in posted
    assert stack.replica("rtx-3060")["enabled"] is True


def test_an_order_that_fails_says_why(browser: Any, stack: Stack) -> None:
    visitor = Visitor(browser, stack.admin)
    page = visitor.open()
    page.route("**/replicas/*/drain", lambda route: route.fulfill(status=409, json={"error": "<b>not</b> now"}))
    page.click('[aria-label="drain rtx-3060"]')
    page.click("#confirm-yes")
    page.wait_for_selector('.toast.failed:has-text("rtx-3060: drain failed: <b>not</b> now")')
    visitor.context.close()
    assert all("409" in complaint for complaint in visitor.complaints)


def test_everything_can_be_done_by_keyboard(visitor: Visitor) -> None:
    page = visitor.open()
    focused = "() => document.activeElement"
    page.keyboard.press("Tab")
    assert page.evaluate(f"({focused})().textContent") == "Skip to the box"
    page.keyboard.press("?")
    assert "these keys" in text(page, "#keys")
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    page.keyboard.press("j")
    assert page.evaluate(f"({focused})().dataset.replica") == "rtx-3060"
    page.keyboard.press("d")
    assert text(page, "#confirm-title") == "Drain rtx-3060?"
    page.keyboard.press("Escape")
    page.keyboard.press("p")  # else the rows move on under the focus
    page.wait_for_selector('html[data-stream="paused"]')
    page.keyboard.press("3")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_selector("#details[open]")
    assert "request=" in page.url
    page.keyboard.press("Escape")
    page.wait_for_selector("#details", state="hidden")
    assert "request=" not in page.url
    page.keyboard.press("/")
    page.keyboard.type("j?d")
    assert page.input_value("#find") == "j?d", "keys are letters where one writes"


def test_a_request_is_shown_with_its_parts_and_the_decision(visitor: Visitor) -> None:
    page = visitor.open()
    page.click("#recent-rows tr button")
    page.wait_for_selector("#details .decision tr.chosen")
    shown = text(page, "#details")
    assert "llama3.1:8b" in shown or "qwen2.5:7b" in shown
    assert re.search(r"The decision: \w+", shown)
    for part in ("first byte", "answer", "predicted", "tokens", "tenant"):
        assert part in shown
    assert "null" not in shown
    assert "undefined" not in shown


def test_what_is_looked_for_stands_in_the_address(visitor: Visitor) -> None:
    page = visitor.open("#find=RTX-5090&level=warning")
    assert page.input_value("#find") == "RTX-5090"
    assert page.input_value("#level") == "warning"
    shown = page.evaluate(
        "() => [...document.querySelectorAll('#recent-rows tr td:nth-child(3)')].map((n) => n.textContent)"
    )
    assert set(shown) == {"rtx-5090"}
    page.fill("#find", "no such thing")
    page.wait_for_selector('#recent-none:has-text("None of the last requests has that")')
    assert "find=no+such+thing" in page.url


def test_what_clients_wrote_is_text(visitor: Visitor, stack: Stack) -> None:
    page = visitor.open()
    name = "<img/src=x/onerror=document.title='owned'>"
    assert stack.ask(name, id="<b>bold</b>") == 404
    row = page.wait_for_selector("#recent-rows tr:has-text('<img/src=x')")
    row.query_selector("button").click()
    page.wait_for_selector("#details .decision p, #details .decision table")
    assert name in text(page, "#details")
    assert page.locator("#details img, #recent-rows img, #details b").count() == 0
    assert "owned" not in page.title()


def test_a_model_is_asked_and_the_replica_that_answered_is_named(visitor: Visitor) -> None:
    page = visitor.open()
    page.keyboard.press("c")
    page.keyboard.type("Why is the sky blue?")
    assert "minilm" not in text(page, "#playground select")
    page.keyboard.press("Enter")
    page.wait_for_selector("#playground .talk .dim:has-text('a second')")
    assert text(page, ".question") == "Why is the sky blue?"
    assert text(page, ".answer")
    assert re.match(r"rtx-\d+ · .+ · waited ", text(page, "#playground .talk .dim"))
    page.keyboard.press("Escape")
    page.wait_for_selector("#playground", state="hidden")


def test_a_broken_stream_is_said_and_recovers(browser: Any, stack: Stack) -> None:
    relay = Relay(stack.admin)
    visitor = Visitor(browser, relay.url)
    try:
        page = visitor.open()
        relay.cut()
        page.wait_for_selector('html[data-stream="broken"] .banner:has-text("Trying again in")')
        assert "stale" in text(page, "#state")
        relay.mend()
        page.wait_for_selector('html[data-stream="live"]')
        page.wait_for_selector("#banner", state="hidden")
        ids = page.evaluate("() => [...document.querySelectorAll('#recent-rows tr')].map((row) => row.dataset.number)")
        assert len(set(ids)) == len(ids) > 0
    finally:
        visitor.context.close()
        relay.close()


def test_it_fits_a_phone(browser: Any, stack: Stack) -> None:
    visitor = Visitor(browser, stack.admin)
    visitor.page.set_viewport_size({"width": 360, "height": 740})
    page = visitor.open()
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 360
    assert page.locator('[aria-label="drain rtx-3060"]').bounding_box()["height"] >= 32
    page.click("#recent-rows tr button")
    page.wait_for_selector("#details[open]")
    assert page.locator("#details").bounding_box()["width"] <= 360
    visitor.context.close()
    assert visitor.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_both_themes(browser: Any, stack: Stack, scheme: str) -> None:
    visitor = Visitor(browser, stack.admin, color_scheme=scheme, reduced_motion="reduce")
    page = visitor.open()
    page.evaluate(FLOWN)
    background = "() => getComputedStyle(document.body).backgroundColor"
    follows = page.evaluate(background)
    assert (max(map(int, re.findall(r"\d+", follows))) > 128) == (scheme == "light")
    assert page.evaluate(CONTRAST) == []
    page.keyboard.press("?")
    assert page.evaluate(CONTRAST) == []
    page.keyboard.press("Escape")
    first = page.locator("#recent-rows tr").first.get_attribute("data-number")
    page.wait_for_function("n => document.querySelector('#recent-rows tr').dataset.number > n + 3", arg=int(first))
    assert page.evaluate("() => window.flown") == 0, "motion is not wanted"
    page.click("#theme")
    page.click("#theme") if scheme == "light" else None
    assert page.evaluate(background) != follows
    page.reload()
    assert page.evaluate(background) != follows, "it is remembered"
    visitor.context.close()
    assert visitor.complaints == []


def test_whatever_state_things_are_in_is_said_and_has_its_buttons(browser: Any, stack: Stack) -> None:
    page_of_all = {"schema": 1, "version": "1", "ready": False, "reason": "why not"} | snapshot_json(history.snapshot())
    event = f"event: snapshot\ndata: {json.dumps(page_of_all)}\n\n"
    visitor = Visitor(browser, stack.admin)
    page, posted = visitor.page, list[str]()
    page.route("**/live?*", lambda route: route.fulfill(content_type="text/event-stream", body=event))
    page.on("request", lambda request: posted.append(request.method + " " + request.url))
    page.route("**/*re*start", lambda route: route.fulfill(json={}))
    page.goto(stack.admin)
    page.wait_for_selector(".card")
    shown = text(page, "main")
    for part in (
        "power cap",
        "fell off the bus",
        "Xid 79",
        "not read yet",
        "next start in",
        "backing off: exit code 1",
    ):
        assert part in shown
    for part in ("drained by the operator", "big:70b runs partly on the CPU", "311 / 450 W", "no replica"):
        assert part in shown
    assert "undefined" not in shown
    assert "NaN" not in shown
    names = "nodes => nodes.map((node) => node.getAttribute('aria-label'))"
    found = page.eval_on_selector_all(".actions button", names)
    assert found == ["drain a", "restart a", "stop a", "log a", "resume b", "drain c", "restart c", "stop c", "log c"]
    page.click('[aria-label="restart a"]')
    page.click("#confirm-yes")
    page.wait_for_selector('.toast:has-text("a restarts")')
    said = "".join(json.dumps({"text": line}) + "\n" for line in ("msg=listening", "<b>x</b>"))
    page.route("**/replicas/a/log?*", lambda route: route.fulfill(content_type="application/x-ndjson", body=said))
    page.click('[aria-label="log a"]')
    page.wait_for_selector("#logs pre:has-text('msg=listening\\A <b>x</b>')")
    page.keyboard.press("Escape")
    page.click("#restart-all")
    assert "One after the other: a, c" in text(page, "#confirm-text")
    page.click("#confirm-yes")
    page.wait_for_selector('.toast:has-text("All restart")')
    orders = [each for each in posted if each.startswith("POST")]
    assert orders == [f"POST {stack.admin}/replicas/a/restart", f"POST {stack.admin}/restart"]
    visitor.context.close()


def test_the_queue_is_shown_in_its_order(visitor: Visitor, stack: Stack) -> None:
    page = visitor.open()
    ask = [threading.Thread(target=stack.ask, args=("llama3.1:8b", 3000)) for _ in range(40)]
    for each in ask:
        each.start()
    page.wait_for_selector("#waiting-rows tr:nth-child(3)")
    until(lambda: stack.snapshot()["requests"]["queued"] == 0, "an empty queue", 20)
    page.wait_for_selector("#waiting-none", state="visible")
    for each in ask:
        each.join()

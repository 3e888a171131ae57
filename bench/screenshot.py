"""Takes the README's picture of the web page: a live demo under load, seen by headless Chromium.

python -m bench.screenshot                        writes docs/screenshot.png
python -m bench.screenshot --theme light --width 390 --out /tmp/phone.png
"""

from __future__ import annotations

import argparse
import asyncio
import re
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Final

import aiohttp
from playwright.async_api import Page, async_playwright
from playwright.async_api import TimeoutError as TooLate
from tests.web.stack import DEMO, FLAGS

CHROMIUM: Final = "/usr/bin/chromium"
MIX: Final = (("llama3.1:8b", 7), ("all-minilm", 3))
"""Model, and how often it is asked beside the others."""


async def main(arguments: argparse.Namespace) -> int:
    if shutil.which(CHROMIUM) is None:
        sys.stderr.write("chromium is missing: apt install chromium\n")
        return 1
    async with demo() as (clients, admin), load(clients, arguments.clients):
        await asyncio.sleep(arguments.seconds / 2)
        await take(admin, arguments)
    size = arguments.out.stat().st_size
    print(f"{arguments.out}: {size / 1024:.0f} KiB")
    return 0


@asynccontextmanager
async def demo() -> AsyncIterator[tuple[str, str]]:
    """A demo on free ports: the addresses for clients and for the operator."""
    child = await asyncio.create_subprocess_exec(*DEMO, stdout=asyncio.subprocess.PIPE)
    assert child.stdout is not None
    try:
        said = ""
        async with asyncio.timeout(60):
            while "Ctrl-C ends the demo" not in said:
                said += (await child.stdout.readline()).decode()
        clients, admin = (re.search(rf"{name} +(http://\S+)", said) for name in ("clients", "admin"))
        assert clients is not None
        assert admin is not None
        yield clients[1], admin[1]
    finally:
        child.terminate()
        child.terminate()
        await child.wait()


@asynccontextmanager
async def load(url: str, clients: int) -> AsyncIterator[None]:
    """So many clients that ask one thing after the other."""
    async with aiohttp.ClientSession(url) as session:
        tasks = [asyncio.create_task(_ask(session, Random(seed))) for seed in range(clients)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _ask(session: aiohttp.ClientSession, rng: Random) -> None:
    names, shares = [name for name, _ in MIX], [share for _, share in MIX]
    key = {"Authorization": f"Bearer tenant-{rng.randrange(5)}"}
    while True:
        (model,) = rng.choices(names, shares)
        rank = rng.choices(("interactive", "normal", "batch"), (3, 5, 2))[0]
        words = " ".join("word" for _ in range(int(rng.lognormvariate(4, 1))))
        body: dict[str, object] = {"model": model, "input": [words] * 4}
        path = "/api/embed"
        if model != "all-minilm":
            path, body = "/api/generate", {"model": model, "prompt": words}
            body["options"] = {"num_predict": int(rng.lognormvariate(4.6, 0.7))}
        async with session.post(path, json=body, headers=key | {"X-Corral-Class": rank}) as answer:
            await answer.read()
        await asyncio.sleep(rng.expovariate(1.0))


async def take(admin: str, arguments: argparse.Namespace) -> None:
    """Open the page, look at it for a while, and keep what is seen."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = await browser.new_page(
            viewport={"width": arguments.width, "height": arguments.height}, color_scheme=arguments.theme
        )
        page.on("console", lambda message: print("console:", message.text))
        page.on("pageerror", lambda error: print("error:", error))
        await page.goto(admin)
        await asyncio.sleep(arguments.seconds / 2)
        with suppress(TooLate):  # a queue is a better picture than none
            await page.wait_for_selector("#waiting-rows tr:nth-child(4)", timeout=30_000)
            await asyncio.sleep(0.05)
        if arguments.open:
            await _open_request(page)
        await page.screenshot(path=arguments.out, full_page=arguments.whole)
        await browser.close()


async def _open_request(page: Page) -> None:
    await page.click("#recent-rows tr:nth-child(3)")
    await page.wait_for_selector("#details table")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.screenshot", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/screenshot.png"))
    parser.add_argument("--theme", choices=("dark", "light"), default="dark")
    parser.add_argument("--width", type=int, default=1400)
    parser.add_argument("--height", type=int, default=1000)
    parser.add_argument("--whole", action="store_true", help="the whole page, however long")
    parser.add_argument("--open", action="store_true", help="with one request opened")
    parser.add_argument("--clients", type=int, default=42)
    parser.add_argument("--seconds", type=float, default=60.0, help="of load before it is taken")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(asyncio.run(main(_arguments())))

"""The page's files over real sockets: what is sent, to whom, and with which headers."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from corral.gateway.serve.admin import INDEX, make_admin, make_runner
from corral.gateway.web.pages import WebPages
from tests.gateway.serve import history
from tests.gateway.serve.test_admin import Gateway

STATIC = Path(__file__).parents[2] / "gateway" / "web" / "static"
BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
MOST_BYTES = 150_000


@pytest_asyncio.fixture
async def admin() -> AsyncIterator[aiohttp.ClientSession]:
    runner = make_runner(make_admin(Gateway(), history.metrics()))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:
        yield session
    await runner.cleanup()


def test_all_of_it_is_small() -> None:
    assert sum(len(file.body) for file in WebPages().files.values()) < MOST_BYTES


def test_every_file_of_the_folder_is_served_and_the_page_asks_for_no_other() -> None:
    files = WebPages().files
    assert set(files) == {path.name for path in STATIC.iterdir()}
    named = set(re.findall(r'(?:src|href)="static/([^"#]+)"', files["index.html"].body.decode()))
    for name, file in files.items():
        if name.endswith(".js"):
            named |= set(re.findall(r'from "\./([^"]+)"', file.body.decode()))
    assert named | {"index.html"} == set(files)


def test_nothing_is_fetched_from_elsewhere_and_no_text_becomes_markup() -> None:
    for name, file in WebPages().files.items():
        text = file.body.decode().replace("http://www.w3.org/2000/svg", "")
        assert "//" not in re.sub(r"(?m)^\s*//.*$|(?<=[;{)]) // .*$|/\*.*?\*/", "", text), name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text), (
            name
        )
        assert not re.search(r"""<[^>]+\son\w+=|<[^>]+\sstyle=|setAttribute\("style"|<style""", text), name


async def test_a_browser_gets_the_page_and_anything_else_the_routes(admin: aiohttp.ClientSession) -> None:
    async with admin.get("/", headers=BROWSER) as answer:
        assert (answer.status, answer.content_type) == (200, "text/html")
        assert "<title>Corral</title>" in await answer.text()
        assert answer.headers["Vary"] == "Accept"
    for path, accept in (("/", "*/*"), ("/routes", "*/*"), ("/routes", BROWSER["Accept"])):
        async with admin.get(path, headers={"Accept": accept}) as answer:
            assert (answer.content_type, await answer.text()) == ("text/plain", INDEX.format(version="1.2.3"))


async def test_every_file_says_that_nothing_else_may_run_in_the_page(admin: aiohttp.ClientSession) -> None:
    for path in ["/", *(f"/static/{name}" for name in WebPages().files)]:
        async with admin.get(path, headers=BROWSER) as answer:
            policy = answer.headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; ")
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Cache-Control"] == "no-cache"


async def test_who_has_the_file_already_gets_304(admin: aiohttp.ClientSession) -> None:
    for path in ("/", "/static/app.js"):
        async with admin.get(path, headers=BROWSER) as answer:
            tag = answer.headers["ETag"]
        for known, status in ((tag, 304), (f'"old", W/{tag}', 304), ("*", 304), ('"old"', 200)):
            async with admin.get(path, headers=BROWSER | {"If-None-Match": known}) as answer:
                assert (answer.status, answer.headers["ETag"]) == (status, tag)
                assert bool(await answer.read()) == (status == 200)


async def test_different_files_have_different_tags() -> None:
    files = WebPages().files
    assert len({file.etag for file in files.values()}) == len(files)


async def test_head_is_answered_without_a_body(admin: aiohttp.ClientSession) -> None:
    async with admin.head("/static/style.css") as answer:
        assert (answer.status, answer.content_type) == (200, "text/css")
        assert int(answer.headers["Content-Length"]) == len(WebPages().files["style.css"].body)
        assert await answer.read() == b""


@pytest.mark.parametrize(
    "path", ["nothing.js", "pages.py", "..%2fpages.py", "%2e%2e%2f__init__.py", "", "app.js/", "..%5cpages.py"]
)
async def test_an_unknown_file_is_404(admin: aiohttp.ClientSession, path: str) -> None:
    async with admin.get(f"/static/{path}") as answer:
        assert answer.status == 404
        assert "no such route" in (await answer.json())["error"]


async def test_a_file_takes_no_post(admin: aiohttp.ClientSession) -> None:
    async with admin.post("/static/app.js") as answer:
        assert answer.status == 405


@pytest.mark.parametrize(
    "headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}], ids=str
)
async def test_foreign_pages_get_neither_the_page_nor_its_buttons(
    admin: aiohttp.ClientSession, headers: dict[str, str]
) -> None:
    for method, path in (("GET", "/"), ("GET", "/static/app.js"), ("POST", "/replicas/a/drain")):
        async with admin.request(method, path, headers=BROWSER | headers) as answer:
            assert answer.status == 403

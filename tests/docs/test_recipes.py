"""docs/recipes.md: what it says to write works."""

from __future__ import annotations

import asyncio
import re
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from corral.gateway.config import parse_config
from corral.gateway.layout.choose import make_plan
from corral.gateway.layout.render import plan_text
from corral.model import LinkKind
from tests.e2e.fleets import Fleet, fleet
from tests.gateway.layout import machines

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
OURS = [text for kind, text in BLOCKS if kind == "yaml" and not text.startswith("http:")]
MODEL = "llama3.2:1b"


def section(title: str) -> str:
    return re.split(rf"^## {title}$", PAGE, maxsplit=1, flags=re.MULTILINE)[1].split("\n## ")[0]


@pytest.mark.parametrize("text", OURS, ids=[text.splitlines()[0][:40] for text in OURS])
def test_every_configuration_can_be_used(text: str) -> None:
    parse_config(text, "corral.yaml")


def test_the_plan_for_four_unequal_gpus_is_the_one_that_is_shown() -> None:
    names = ("GeForce RTX 3090", "GeForce RTX 4090", "GeForce RTX 3060", "RTX A6000")
    gpus = [machines.nvidia(number, f"NVIDIA {name}") for number, name in enumerate(names)]
    facts = machines.facts(gpus, machines.links(gpus, {}, LinkKind.HOST_BRIDGE), ram_bytes=128 * machines.GIB)
    part = section("DeepSeek-R1 on four unequal GPUs")
    config = parse_config(re.findall(r"```yaml\n(.*?)```", part, re.DOTALL)[0], "corral.yaml")
    text = plan_text(make_plan(config, facts), facts)
    for line in re.findall(r"```text\n(.*?)```", part, re.DOTALL)[0].splitlines():
        assert line in text.splitlines()


# -- nginx in front, with TLS


@pytest_asyncio.fixture
async def front(tmp_path: Path, unused_tcp_port: int) -> AsyncIterator[tuple[str, Fleet]]:
    """The recipe's nginx in front of a gateway that is configured as the recipe says."""
    nginx = shutil.which("nginx")
    if nginx is None:
        pytest.skip("no nginx here (package nginx)")
    more = 'hosts: [ai.example.org]\norigins: ["https://ai.example.org"]\n'
    async with fleet(tmp_path, 1, "--model", MODEL, "--speed", "20", more=more) as running:
        (tmp_path / "nginx.conf").write_text(nginx_conf(tmp_path, unused_tcp_port, running.gateway.port))
        line = [nginx, "-p", str(tmp_path), "-c", "nginx.conf", "-e", "error.log"]
        subprocess.run([*line, "-t", "-q"], check=True)
        process = subprocess.Popen([*line, "-g", "daemon off;"])
        try:
            await listens(unused_tcp_port)
            yield f"https://127.0.0.1:{unused_tcp_port}", running
        finally:
            process.terminate()
            process.wait(10)


def nginx_conf(folder: Path, port: int, gateway_port: int) -> str:
    key, certificate = folder / "privkey.pem", folder / "fullchain.pem"
    subject = ["-subj", "/CN=ai.example.org", "-days", "2"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *files, *subject], check=True, capture_output=True
    )
    server = next(text for kind, text in BLOCKS if kind == "nginx")
    server = server.replace("/etc/ssl/ai.example.org", str(folder)).replace("listen 443", f"listen 127.0.0.1:{port}")
    server = server.replace("127.0.0.1:11434", f"127.0.0.1:{gateway_port}")
    places = "".join(f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy"))
    own = "worker_processes 1; pid nginx.pid; error_log error.log;"
    return f"{own} events {{}}\nhttp {{ access_log off; {places}\n{server}\n}}"


async def listens(port: int) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return


async def test_nginx_lets_in_who_has_the_key_and_passes_each_line_at_once(front: tuple[str, Fleet]) -> None:
    url, running = front
    tls = ssl.create_default_context()
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    named = {"Host": "ai.example.org", "Origin": "https://ai.example.org"}
    body = {"model": MODEL, "prompt": "hi", "options": {"num_predict": 200}}
    async with asyncio.timeout(30), aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as session:
        async with session.post(f"{url}/api/generate", json=body, headers=named) as refused:
            assert refused.status == 401
        named["Authorization"] = "Bearer CHANGE-ME"
        async with session.post(f"{url}/api/generate", json=body, headers=named) as answer:
            assert answer.status == 200
            assert b'"done":false' in await answer.content.readline()
            assert (await running.gateway.requests())[0] == 1, "the first line is here while the rest is being made"
            assert b'"done":true' in (await answer.content.read()).splitlines()[-1]

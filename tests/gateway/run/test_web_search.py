"""What an Ollama that Corral runs needs for its cloud: it finds itself when it calls itself back, and one account.

The web search of ``/v1/messages`` has an Ollama search, and then ask *itself*, at ``OLLAMA_HOST``, for the answer.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from corral.gateway.config import parse_config
from corral.gateway.layout.choose import make_plan
from corral.gateway.layout.facts import no_proxy
from corral.gateway.run.child import Birth
from tests.gateway.layout.machines import facts, nvidia

BASE = {"HOME": "/home/me", "OLLAMA_HOST": "127.0.0.1:11434"}
PROXIES = [
    {},
    {"HTTP_PROXY": "http://proxy:3128", "https_proxy": "http://proxy:3128"},
    {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "intranet"},
    {"http_proxy": "http://proxy:3128", "no_proxy": "localhost, intranet"},
]


def born(environ: dict[str, str], text: str = "{}") -> list[dict[str, str]]:
    """The environments of three replicas."""
    gpus = [nvidia(at, "NVIDIA GeForce RTX 4090") for at in range(3)]
    plan = make_plan(parse_config(text, "corral.yaml"), facts(gpus, no_proxy=no_proxy(environ)))
    return [
        Birth(replica, port, "token", environ, Path("log")).env for port, replica in enumerate(plan.replicas, 21001)
    ]


@pytest.mark.parametrize("proxies", PROXIES)
def test_a_replica_that_calls_itself_back_finds_itself(proxies: dict[str, str]) -> None:
    envs = born(BASE | proxies)
    assert [env["OLLAMA_HOST"] for env in envs] == ["127.0.0.1:21001", "127.0.0.1:21002", "127.0.0.1:21003"]
    for env in envs:
        for name in ("NO_PROXY", "no_proxy"):  # Go reads the first that is set
            assert not proxies or "127.0.0.1" in env[name].split(",")


def test_replicas_share_one_home_and_with_it_one_account() -> None:
    assert [env["HOME"] for env in born(BASE)] == ["/home/me"] * 3

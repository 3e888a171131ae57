"""``corral info``: what somebody who helps wants to know, and no secret."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from corral import __version__
from corral.gateway.config.environment import VARIABLES
from tests.gateway.cli.shell import corral

NOWHERE = "http://127.0.0.1:1"
"""No gateway is asked that may run on this machine."""


async def test_it_tells_versions_paths_ports_and_variables_set_or_not(tmp_path: Path) -> None:
    file = tmp_path / "corral.yaml"
    file.write_text(f"listen: 127.0.0.1:8080\nstate_dir: {tmp_path}/state\n")
    ended = await corral("info", "--json", CORRAL_CONFIG=str(file), CORRAL_ADMIN=NOWHERE, OLLAMA_NUM_PARALLEL="4")
    assert (ended.code, ended.err) == (0, "")
    page = json.loads(ended.out)
    assert page["schema"] == 1
    assert page["corral"]["version"] == __version__
    assert page["corral"]["executable"] == sys.executable
    assert page["libraries"]["aiohttp"]
    assert page["extras"]["top"].keys() == {"textual"}
    assert page["configuration"]["file"] == str(file)
    assert page["configuration"]["named_by"] == "CORRAL_CONFIG"
    assert (page["configuration"]["listen"], page["configuration"]["admin_listen"]) == (
        "127.0.0.1:8080",
        "127.0.0.1:11435",
    )
    assert page["state"] == {"folder": f"{tmp_path}/state", "exists": False, "logs": f"{tmp_path}/state/logs"}
    assert page["environment"]["OLLAMA_NUM_PARALLEL"] == "4"
    assert page["environment"]["CORRAL_CONFIG"] == str(file)
    assert {variable.name for variable in VARIABLES} <= page["environment"].keys()
    assert page["environment"]["OLLAMA_SCHEDULER"] is None
    assert page["gateway"] == {
        **{"admin": NOWHERE, "version": None, "ready": None},
        "reason": f"no gateway answers on {NOWHERE} (Connection refused)",
    }


async def test_secrets_are_masked(tmp_path: Path) -> None:
    file = tmp_path / "corral.yaml"
    file.write_text('replicas: [{id: a, url: "http://127.0.0.1:21001"}]\n')
    secrets = {
        "HTTPS_PROXY": "http://me:hunter2@proxy:3128",
        "HTTP_PROXY": "me:hunter2@proxy:3128",
        "OLLAMA_API_KEY": "sk-hunter2",
        "OLLAMA_NEW_TOKEN": "hunter2",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer hunter2",
        "CORRAL_ADMIN": "http://me:hunter2@127.0.0.1:1",
    }
    for how in ((), ("--json",)):
        ended = await corral("info", "--config", str(file), *how, **secrets)
        assert ended.code == 0
        assert "hunter2" not in ended.out + ended.err
        assert "proxy:3128" in ended.out
        assert "OLLAMA_NEW_TOKEN" in ended.out


async def test_a_file_that_cannot_be_used_is_told_and_the_rest_too(tmp_path: Path) -> None:
    (tmp_path / "corral.yaml").write_text("lissten: 127.0.0.1:8080\n")
    ended = await corral("info", "--admin", NOWHERE, cwd=tmp_path)
    assert ended.code == 0
    assert "unknown key 'lissten'" in ended.out or "lissten" in ended.out
    assert "  named_by  this folder\n" in ended.out
    assert "\nenvironment\n" in ended.out


async def test_text_is_one_line_a_value_and_nothing_in_it_steers_the_terminal() -> None:
    ended = await corral("info", "--admin", NOWHERE, OLLAMA_MODELS="/x\x1b[2J\ny")
    assert "OLLAMA_MODELS              /x?[2J?y\n" in ended.out
    assert "\x1b" not in ended.out

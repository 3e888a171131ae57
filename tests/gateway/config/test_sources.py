"""Where values come from, and who wins."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from corral.errors import ConfigError
from corral.gateway.config import Address, Config, ProbesConfig, ReplicaConfig, ReplicaUrl
from corral.gateway.config.sources import From, Settled, Sources, stamp_of

TEXT = """\
listen: 127.0.0.1:1
replicas:
  - &a {id: a, url: "http://127.0.0.1:21001", slots: 2}
  - <<: *a
    id: b
    url: "http://127.0.0.1:21002"
gpus: [0, {gpus: [1, 2], slots: 3}]
ollama: {env: {A: x}}
queue:
  max_wait_s: 5
"""


def settled(folder: Path, text: str = TEXT, **environ: str) -> Settled:
    path = folder / "corral.yaml"
    path.write_text(text)
    return Sources(path, environ).settle()


def test_each_value_of_a_file_is_told_with_its_line(tmp_path: Path) -> None:
    found = settled(tmp_path, OLLAMA_NUM_PARALLEL="3")
    path = tmp_path / "corral.yaml"
    wanted = {
        "listen": f"{path}:1",
        "replicas[0].url": f"{path}:3",
        "replicas[1].id": f"{path}:5",
        "replicas[1].slots": f"{path}:3",
        "gpus[0].gpus": f"{path}:7",
        "gpus[1].slots": f"{path}:7",
        "ollama.env.A": f"{path}:8",
        "queue.max_wait_s": f"{path}:10",
        "ollama.parallel": "OLLAMA_NUM_PARALLEL",
        "queue.order": "default",
        "replicas[0].weight": "default",
        "replicas[0].gpus": "default",
        "gpus[0].slots": "default",
        "admin_listen": "default",
    }
    assert {key: str(found.origin(key)) for key in wanted} == wanted


def test_a_flag_goes_before_everything_and_a_whole_that_was_set_tells_its_parts(tmp_path: Path) -> None:
    path = tmp_path / "corral.yaml"
    path.write_text(TEXT)
    environ = {"CORRAL_LISTEN": ":0:", "OLLAMA_SCHEDULER_INTERVAL": "500"}
    found = Sources(path, environ, {"listen": ("--listen", Address("::1", 7))}).settle()
    assert found.config.listen == Address("::1", 7)
    assert (found.origin("listen").kind, str(found.origin("listen"))) == (From.FLAG, "--listen")
    assert str(found.origin("probes.gpu_interval_s")) == "OLLAMA_SCHEDULER_INTERVAL"


def test_what_a_command_makes_up_is_its_own_and_no_variable_moves_it() -> None:
    replica = ReplicaConfig(id="a", url=ReplicaUrl("127.0.0.1", 21001))
    base = Config(replicas=(replica,), probes=ProbesConfig(gpu_interval_s=0.5))
    environ = {"OLLAMA_HOST": ":1", "CORRAL_LISTEN": "0.0.0.0:2", "OLLAMA_SCHEDULER_INTERVAL": "99"}
    found = Sources(None, environ | {"OLLAMA_MAX_QUEUE": "7"}, base=base, command="corral demo").settle()
    assert found.config.listen == Config().listen
    assert found.config.probes == base.probes
    assert found.config.queue.max_requests == 7
    origins = {key: str(found.origin(key)) for key in ("listen", "replicas[0].id", "queue.max_requests", "policy.name")}
    assert origins == {
        "listen": "corral demo",
        "replicas[0].id": "corral demo",
        "queue.max_requests": "OLLAMA_MAX_QUEUE",
        "policy.name": "default",
    }


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({"OLLAMA_HOST": "127.0.0.1:11435"}, "choose another port (listen is what OLLAMA_HOST says)"),
        ({"CORRAL_LISTEN": "0.0.0.0:21002"}, "is the gateway's own listen (0.0.0.0:21002)"),
    ],
)
def test_an_address_from_outside_may_not_collide_with_one_of_the_file(
    environ: dict[str, str], wanted: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        settled(tmp_path, TEXT.replace("listen: 127.0.0.1:1\n", ""), **environ)
    assert wanted in str(caught.value)


def test_a_limit_from_outside_may_not_be_too_little_for_what_the_file_pins(tmp_path: Path) -> None:
    text = "gpus: [{gpus: [0], pin: [a, b]}]\n"
    assert settled(tmp_path, text, OLLAMA_MAX_LOADED_MODELS="2").config.ollama.max_loaded == 2
    with pytest.raises(ConfigError) as caught:
        settled(tmp_path, text, OLLAMA_MAX_LOADED_MODELS="1")
    assert "1 is too little for the 2 models of pin" in str(caught.value)
    assert "(ollama.max_loaded is what OLLAMA_MAX_LOADED_MODELS says)" in str(caught.value)


def test_the_files_are_that_of_the_configuration_and_that_of_its_policy(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("class Mine:\n    def choose(self, request, candidates, rng): ...\n")
    found = settled(tmp_path, TEXT + "policy: {path: mine.py, name: Mine}\n")
    assert found.files == (tmp_path / "corral.yaml", mine)
    assert found.stamp == stamp_of(found.files)


def test_a_stamp_changes_with_the_content_and_with_the_file_behind_a_link(tmp_path: Path) -> None:
    first, second, link = tmp_path / "1", tmp_path / "2", tmp_path / "link"
    first.write_text("a")
    second.write_text("a")
    link.symlink_to(first)
    before = stamp_of([link])
    first.write_text("bb")
    after = stamp_of([link])
    assert before != after == stamp_of([link])
    (tmp_path / "new").symlink_to(second)
    os.replace(tmp_path / "new", link)
    assert stamp_of([link]) not in (before, after)
    link.unlink()
    assert stamp_of([link]) == (None,)

"""The start-up card, and what is said while a gateway stops."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest
from click import unstyle

from corral.gateway.cli.card import model_to_try, plain, show, wants_boxes
from corral.gateway.cli.serving import Farewell
from corral.model import GpuState, Replica, ReplicaState, Snapshot
from tests.gateway.serve import history


def gpu(number: int, name: str) -> GpuState:
    some = history.snapshot().gpus[0]
    return replace(some, gpu=replace(some.gpu, uuid=f"GPU-{number}", name=name), label=str(number))


@dataclass
class Ready:
    """A gateway that runs on two kinds of GPU, and stands in front of one Ollama elsewhere."""

    url: str = "http://0.0.0.0:11434"
    admin_url: str = "http://127.0.0.1:11999"
    replicas: Sequence[Replica] = (
        Replica(id="gpu0", host="127.0.0.1", port=21001, slots=4, gpus=("GPU-0",)),
        Replica(id="gpu1-2", host="127.0.0.1", port=21002, slots=2, weight=2.5, gpus=("GPU-1", "GPU-2")),
        Replica(id="far", host="fd00::1", port=11434, slots=None),
    )
    folders: Mapping[str, str] = field(default_factory=lambda: {"gpu0": "/models", "gpu1-2": "/models"})

    def snapshot(self) -> Snapshot:
        return replace(history.snapshot(), gpus=(gpu(0, "RTX 4090"), gpu(1, "Tesla T4"), gpu(2, "Tesla T4")))


def test_in_a_pipe_each_replica_has_a_line_from_its_gpu_to_its_models() -> None:
    card = plain(Ready(), "1.2.3", 0.44).splitlines()
    assert card[:3] == [
        "Corral 1.2.3 is ready after 0.4 s",
        "  clients   http://0.0.0.0:11434",
        "  admin     http://127.0.0.1:11999  (web page; /snapshot /metrics /healthz /readyz)",
    ]
    assert card[3:6] == [
        "  replicas  gpu0    http://127.0.0.1:21001  weight 1  slots 4  GPU 0 RTX 4090  models /models",
        "            gpu1-2  http://127.0.0.1:21002  weight 2.5  slots 2  GPU 1+2 Tesla T4  models /models",
        "            far     http://[fd00::1]:11434  weight 1  slots not known yet",
    ]
    assert card[6].startswith("next: OLLAMA_HOST=127.0.0.1:11434 ollama run ")
    assert card[7] == "      corral status --admin http://127.0.0.1:11999"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, out: io.StringIO, **env: str) -> str:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", **env}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout", out)
    show(Ready(), "1.2.3", 0.44, "more below")
    return out.getvalue()


def test_on_a_terminal_there_is_a_box_and_the_commands_to_copy_stand_outside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = shown(monkeypatch, Terminal(), COLUMNS="120")
    assert "\x1b[" in seen
    lines = unstyle(seen).splitlines()
    assert "Corral 1.2.3 is ready after 0.4 s" in lines[0]
    boxed = [line for line in lines if line.startswith("│")]
    row = next(line for line in boxed if "gpu1-2" in line)
    assert row.split()[1:9] == ["1+2", "Tesla", "T4", "gpu1-2", "http://127.0.0.1:21002", "2.5", "2", "/models"]
    assert any("http://127.0.0.1:11999/" in line for line in boxed)
    assert [line for line in lines if line.startswith("next: OLLAMA_HOST=127.0.0.1:11434 ollama run")]
    assert lines[-1] == "more below"


def test_a_terminal_too_narrow_for_the_box_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = shown(monkeypatch, Terminal(), COLUMNS="60")
    assert seen == f"{plain(Ready(), '1.2.3', 0.44)}\n\nmore below\n"


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_who_wants_no_colour_gets_the_lines_of_a_pipe(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, Terminal(), **env) == f"{plain(Ready(), '1.2.3', 0.44)}\n\nmore below\n"
    assert not wants_boxes(io.StringIO(), {})


def state(**more: object) -> ReplicaState:
    return replace(history.snapshot().replicas[0], **{"loaded": None, "installed": None, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("states", "wanted"),
    [
        ([state(installed=("b:1", "a:1"))], "a:1"),
        ([state(installed=("a:1",)), state(installed=("a:1",), loaded=("z:1",))], "z:1"),
        ([state(installed=("all-minilm:latest", "nomic-embed-text:latest"))], "llama3.1:8b"),
        ([state()], "llama3.1:8b"),
        ([state(installed=("m\x1b[2J:1",))], "m?[2J:1"),
    ],
)
def test_the_model_to_try_is_one_that_is_there_and_talks(states: Sequence[ReplicaState], wanted: str) -> None:
    assert model_to_try(replace(history.snapshot(), replicas=tuple(states))) == wanted


def test_a_stop_says_at_once_what_it_waits_for_and_then_only_what_is_new(capsys: pytest.CaptureFixture[str]) -> None:
    now_s = [0.0]
    running = {"gpu0": 2, "gpu1": 1}

    def snapshot() -> Snapshot:
        made = [replace(state(), id=id, inflight=count) for id, count in running.items()]
        return replace(history.snapshot(), replicas=tuple(made))

    farewell = Farewell(lambda: now_s[0])
    farewell.snapshot = snapshot

    def tell(at_s: float, count: int) -> str:
        now_s[0] = at_s
        farewell.tell(count, 300 - at_s)
        return capsys.readouterr().err

    assert tell(0.0, 3) == (
        "stopping: waiting for 3 running requests, up to 300 s; again (Ctrl-C) stops now (gpu0: 2, gpu1: 1)\n"
    )
    assert tell(0.05, 3) == tell(9.9, 3) == ""
    running["gpu1"] = 0
    assert tell(9.95, 2) == "still waiting for 2 running requests, up to 290 s more (gpu0: 2)\n"
    running["gpu0"] = 1
    assert tell(10.0, 1) == ""  # soon after the last line
    assert tell(11.0, 1) == "still waiting for 1 running request, up to 289 s more (gpu0: 1)\n"
    assert tell(20.9, 1) == ""
    assert tell(21.0, 1).startswith("still waiting for 1 running request, up to 279 s more")

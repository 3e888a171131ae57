"""What the command line says to a person while the gateway starts, runs and stops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from corral.model import Replica


class Ready(Protocol):
    """What is known once the gateway accepts requests."""

    @property
    def url(self) -> str: ...
    @property
    def admin_url(self) -> str: ...
    @property
    def replicas(self) -> Sequence[Replica]: ...


def start_card(ready: Ready, version: str, seconds: float | None) -> str:
    """A few lines: where clients connect, where operators look, what stands behind. ``seconds`` since the start."""
    client = client_url(ready.url)
    lines = [
        f"Corral {version} is ready{'' if seconds is None else f' after {seconds:.1f} s'}",
        f"  clients   {ready.url}",
        f"  admin     {ready.admin_url}  (/snapshot /metrics /healthz /readyz)",
        *_replica_lines(ready.replicas),
        f"next: OLLAMA_HOST={client.removeprefix('http://')} ollama run llama3.1:8b",
        f"      corral status{_admin_flag(ready.admin_url)}",
    ]
    return "\n".join(lines)


def client_url(url: str) -> str:
    """The address a client on this machine writes: a server on every interface is met on the loopback one."""
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


def _admin_flag(admin_url: str) -> str:
    admin = client_url(admin_url)
    return "" if admin == "http://127.0.0.1:11435" else f" --admin {admin}"


def _replica_lines(replicas: Sequence[Replica]) -> list[str]:
    width = max((len(replica.id) for replica in replicas), default=0)
    lines = []
    for index, replica in enumerate(replicas):
        host = f"[{replica.host}]" if ":" in replica.host else replica.host
        slots = "not known yet" if replica.slots is None else str(replica.slots)
        url = f"http://{host}:{replica.port}"
        head = "replicas" if index == 0 else ""
        lines.append(f"  {head:<8}  {replica.id:<{width}}  {url}  weight {replica.weight:g}  slots {slots}")
    return lines


def visible(text: str) -> str:
    """A name that a client made up: nothing in it may steer the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def draining(running: int, drain_s: float) -> str:
    """Said at the first Ctrl-C (or SIGTERM) while requests run."""
    streams = "1 running request" if running == 1 else f"{running} running requests"
    return f"stopping: waiting for {streams}, up to {drain_s:g} s; again (Ctrl-C) stops now"


DEMO_IS_EMULATED = """\
This is a demo. The {count} replicas behind the gateway are emulated: no GPU is used, no model is loaded,
and the text they answer is invented. Their speeds follow measured figures of the GPUs they are named after."""


GPUS_NOT_SHOWN = "The readings of the emulated GPUs are not shown: {why}"


def port_moved(what: str, taken: int, free: int) -> str:
    return f"port {taken} is taken on this machine: {what} uses {free} instead"


def copy_and_try(url: str, admin_url: str, model: str, python: str, corral: str) -> str:
    """Three commands to copy: native, OpenAI, and a Python client run by ``python``; and the one that shows it."""
    flag = _admin_flag(admin_url)
    url = client_url(url)
    question = '{"role":"user","content":"Why is the sky blue?"}'
    asked = question.replace('"', "'")
    return f"""\
Copy one of these into another terminal:

  curl {url}/api/chat -d '{{"model":"{model}","messages":[{question}]}}'

  curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"model":"{model}","messages":[{question}]}}'

  {python} -c "import ollama; print(ollama.Client('{url}').chat('{model}', [{asked}]).message.content)"

`{corral} status{flag}` shows the replicas, their GPUs and what they do.

Ctrl-C ends the demo and its emulated replicas."""

"""What the command line says to a person while the gateway starts, runs and stops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

EXAMPLE_MODEL: Final = "llama3.1:8b"
_NO_TALKERS: Final = ("embed", "minilm", "bge", "rerank")
"""In names of models that answer no question."""


def talks(model: str) -> bool:
    """Whether it may be asked something, as far as its name tells."""
    return not any(word in model for word in _NO_TALKERS)


def client_url(url: str) -> str:
    """The address a client on this machine writes: a server on every interface is met on the loopback one."""
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


def admin_flag(admin_url: str) -> str:
    """What a command needs to find this gateway."""
    admin = client_url(admin_url)
    return "" if admin == "http://127.0.0.1:11435" else f" --admin {admin}"


def visible(text: str) -> str:
    """A name that a client made up: nothing in it may steer the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def draining(running: int, left_s: float, at: Mapping[str, int]) -> str:
    """Said at the first Ctrl-C (or SIGTERM) while requests run, ``at`` so many at each replica."""
    where = f" ({_places(at)})" if at else ""
    return f"stopping: waiting for {_requests(running)}, up to {_seconds(left_s)}; again (Ctrl-C) stops now{where}"


def still_draining(running: int, left_s: float, at: Mapping[str, int]) -> str:
    """Said later on."""
    where = f" ({_places(at)})" if at else ""
    return f"still waiting for {_requests(running)}, up to {_seconds(left_s)} more{where}"


def _requests(count: int) -> str:
    return "1 running request" if count == 1 else f"{count} running requests"


def _seconds(value: float) -> str:
    return f"{round(value, 1):g} s" if value < 10 else f"{value:.0f} s"


def _places(at: Mapping[str, int]) -> str:
    return ", ".join(f"{replica}: {count}" for replica, count in at.items())


DEMO_IS_EMULATED = """\
This is a demo. The {count} replicas behind the gateway are emulated: no GPU is used, no model is loaded,
and the text they answer is invented. Their speeds follow measured figures of the GPUs they are named after."""


GPUS_NOT_SHOWN = "The readings of the emulated GPUs are not shown: {why}"


def port_moved(what: str, taken: int, free: int) -> str:
    return f"port {taken} is taken on this machine: {what} uses {free} instead"


def copy_and_try(url: str, admin_url: str, model: str, python: str, corral: str) -> str:
    """Three commands to copy: native, OpenAI, and a Python client run by ``python``; and the one that shows it."""
    flag, admin_page = admin_flag(admin_url), f"{client_url(admin_url)}/"
    url = client_url(url)
    question = '{"role":"user","content":"Why is the sky blue?"}'
    asked = question.replace('"', "'")
    return f"""\
Copy one of these into another terminal:

  curl {url}/api/chat -d '{{"model":"{model}","messages":[{question}]}}'

  curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"model":"{model}","messages":[{question}]}}'

  {python} -c "import ollama; print(ollama.Client('{url}').chat('{model}', [{asked}]).message.content)"

`{corral} status{flag}` shows the replicas, their GPUs and what they do; {admin_page} shows it live.
`{corral} explain{flag}` says why the last requests went where they went.

Ctrl-C ends the demo and its emulated replicas."""

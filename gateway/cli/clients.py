"""Programs that talk to an Ollama, and what each must be told to talk to Corral instead."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

KEY: Final = "corral"
"""Programs want a key. Corral takes any: who sends the same one is one tenant."""
_TO_HOST: Final = " --add-host=host.docker.internal:host-gateway"


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """A file of the client's own, and what must stand in it."""

    path: str
    """Below the home folder."""
    kind: Literal["json", "yaml", "toml"]
    content: Mapping[str, Any]
    by_hand: str = ""
    """The content as text, of a kind that is not written for a person: ``toml``."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What one client needs."""

    env: Mapping[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    """Its program with the arguments it needs; empty: whichever program the person names."""
    file: SettingsFile | None = None
    text: str = ""
    """To copy, where neither environment nor file says it all."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Client:
    """One program."""

    title: str
    make: Callable[[str, str], Setting]
    """Of the gateway's URL and a model."""
    source: str
    """Where its settings are described; empty: Corral's own tests use it so."""


def _claude(url: str, model: str) -> Setting:
    env = {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_AUTH_TOKEN": KEY, "ANTHROPIC_API_KEY": "", "ANTHROPIC_MODEL": model}
    env |= {f"ANTHROPIC_DEFAULT_{tier}_MODEL": model for tier in ("OPUS", "SONNET", "HAIKU")}
    return Setting(
        env=env,
        command=("claude", "--model", model),
        file=SettingsFile(".claude/settings.json", "json", {"env": env}),
        notes=(
            "What stands under `env` in its settings file goes before the shell's environment.",
            "It works with long contexts: 64k tokens or more (`ollama: {context_length: 65536}` in corral.yaml).",
        ),
    )


def _codex(url: str, model: str) -> Setting:
    provider = f'{{name="Corral", base_url="{url}/v1", wire_api="responses"}}'
    by_hand = (
        f'model = {json.dumps(model)}\nmodel_provider = "corral"\n\n[model_providers.corral]\n'
        f'name = "Corral"\nbase_url = "{url}/v1"\nwire_api = "responses"'
    )
    options = ("-c", 'model_provider="corral"', "-c", f"model_providers.corral={provider}", "-m", model)
    return Setting(
        command=("codex", *options),
        file=SettingsFile(".codex/config.toml", "toml", {}, by_hand),
        notes=("It works with long contexts: 32k tokens or more.",),
    )


def _openai(url: str, model: str) -> Setting:
    env = {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": KEY}
    return Setting(env=env, notes=(f"The model's name is Ollama's: {model}",))


def _anthropic(url: str, model: str) -> Setting:
    env = {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": KEY}
    return Setting(env=env, notes=(f"The model's name is Ollama's: {model}",))


def _ollama(url: str, model: str) -> Setting:
    return Setting(env={"OLLAMA_HOST": url.removeprefix("http://")}, command=("ollama", "run", model))


def _aider(url: str, model: str) -> Setting:
    return Setting(env={"OLLAMA_API_BASE": url}, command=("aider", "--model", f"ollama_chat/{model}"))


def _zed(url: str, model: str) -> Setting:
    content = {"language_models": {"ollama": {"api_url": url}}}
    return Setting(
        file=SettingsFile(".config/zed/settings.json", "json", content),
        notes=("It finds the models by itself; choose one in the model menu of its agent panel.",),
    )


def _continue(url: str, model: str) -> Setting:
    entry = {"name": f"{model} (Corral)", "provider": "ollama", "model": model, "apiBase": url}
    content = {"name": "Local", "version": "0.0.1", "schema": "v1", "models": [entry]}
    return Setting(file=SettingsFile(".continue/config.yaml", "yaml", content))


def _openwebui(url: str, model: str) -> Setting:
    host, _, port = url.removeprefix("http://").rpartition(":")
    here = host in ("127.0.0.1", "localhost", "[::1]")
    base, to_host = (f"http://host.docker.internal:{port}", _TO_HOST) if here else (url, "")
    text = (
        f"docker run -d -p 3000:8080{to_host} \\\n"
        f"  -e OLLAMA_BASE_URL={base} \\\n"
        "  -v open-webui:/app/backend/data --name open-webui ghcr.io/open-webui/open-webui:main"
    )
    inside = (
        "In a container 127.0.0.1 is the container itself: hence the other name, and Corral must listen on an address "
        f"that containers reach (`listen: 172.17.0.1:{port}` for Docker's own bridge, or 0.0.0.0)."
    )
    saved = "What was once saved in its admin settings (Connections) goes before the variable."
    return Setting(
        env={"OLLAMA_BASE_URL": url},
        command=("open-webui", "serve"),
        text=text,
        notes=(inside, saved) if here else (saved,),
    )


def _curl(url: str, model: str) -> Setting:
    asked = json.dumps({"model": model, "messages": [{"role": "user", "content": "Why is the sky blue?"}]})
    return Setting(text=f"curl {url}/api/chat -d '{asked}'")


def _python(url: str, model: str) -> Setting:
    text = (
        "import ollama\n\n"
        f"client = ollama.Client({url!r})\n"
        f"answer = client.chat({model!r}, [{{'role': 'user', 'content': 'Why is the sky blue?'}}])\n"
        "print(answer.message.content)"
    )
    return Setting(env={"OLLAMA_HOST": url}, text=text)


CLIENTS: Final = {
    "ollama": Client("Ollama's own command", _ollama, ""),
    "curl": Client("curl", _curl, ""),
    "python": Client("Python (package ollama)", _python, ""),
    "openai": Client("programs with OpenAI's SDK", _openai, ""),
    "anthropic": Client("programs with Anthropic's SDK", _anthropic, ""),
    "claude": Client("Claude Code", _claude, "https://docs.ollama.com/integrations/claude-code"),
    "codex": Client("Codex CLI", _codex, "https://docs.ollama.com/codex"),
    "aider": Client("aider", _aider, "https://aider.chat/docs/llms/ollama.html"),
    "zed": Client("Zed", _zed, "https://zed.dev/docs/ai/use-a-local-model"),
    "continue": Client("Continue", _continue, "https://docs.continue.dev/customize/model-providers/top-level/ollama"),
    "openwebui": Client("Open WebUI", _openwebui, "https://github.com/open-webui/open-webui (docker-compose.yaml)"),
}

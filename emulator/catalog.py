"""The GPUs and models the emulator knows, read from ``calibration.json``."""

from __future__ import annotations

import difflib
import hashlib
import json
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

from corral.errors import OperatorError
from corral.model import is_cloud_model, normalise_model

GIB = 1 << 30
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """One kind of GPU, or one that the operator described."""

    name: str
    vram_bytes: int
    bandwidth_bytes_s: float
    tdp_watts: float
    idle_watts: float
    step_base_s: float
    step_s_per_gb: float
    prefill_8b_tok_s: float
    batch_class: str


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model: what decides its memory, its speed and what it can do."""

    name: str
    """As in ``/api/tags``: always with a tag."""
    file_bytes: int
    layers: int
    kv_bytes_per_token: int
    family: str
    parameter_size: str
    quantization: str
    context_length: int
    embedding_length: int
    capabilities: tuple[str, ...]
    remote: bool = False
    salt: str = ""
    """Tells models apart that have the same size and shape."""
    weights: str = ""
    """The digest of weights that were uploaded; without it they are :attr:`blob_content`."""

    @property
    def embedding_only(self) -> bool:
        return "completion" not in self.capabilities

    @property
    def blob_content(self) -> bytes:
        """A few bytes that stand for the weights."""
        return f"weights {self.family} {self.parameter_size} {self.quantization} {self.file_bytes} {self.salt}".encode()

    @property
    def blob_digest(self) -> str:
        """The digest of the weights: equal for every name of the same weights, on every emulator."""
        return self.weights or "sha256:" + hashlib.sha256(self.blob_content).hexdigest()


@cache
def calibration() -> dict[str, Any]:
    """The whole data file; its ``source`` keys say where each figure is from."""
    loaded: dict[str, Any] = json.loads(resources.files("corral.emulator").joinpath("calibration.json").read_text())
    return loaded


def gpu_named(name: str) -> GpuSpec:
    """The GPU of that name; an OperatorError names the nearest known ones."""
    known = calibration()["gpus"]
    by_plain = {_plain(key): key for key in known}
    key = by_plain.get(_plain(name)) or _only_start(_plain(name), by_plain)
    if key is None:
        raise OperatorError(_unknown("GPU", name, list(known), "--gpu"))
    row = known[key]
    return GpuSpec(
        name=key,
        vram_bytes=int(row["vram_GiB"] * GIB),
        bandwidth_bytes_s=row["bandwidth_GBps"] * 1e9,
        tdp_watts=row["tdp_W"],
        idle_watts=row["idle_W"],
        step_base_s=row["step_base_ms"] / 1e3,
        step_s_per_gb=row["step_ms_per_GB"] / 1e3,
        prefill_8b_tok_s=row["prefill_8b_tok_s"],
        batch_class=row["batch_class"],
    )


def model_named(name: str) -> ModelSpec | None:
    """The model of that name under the name asked for (``llama3.1`` is ``llama3.1:latest``), or None."""
    asked = normalise_model(name)
    if is_cloud_model(asked):
        return _cloud(asked)
    short = asked.rpartition("/")[2]
    family, _, tag = short.partition(":")
    data = calibration()
    if tag == "latest":
        tag = data["latest"].get(family, tag)
    base, quant = _split_tag(tag)
    row = data["models"].get(f"{family}:{base}")
    if row is None:
        return None
    return _model(asked, row, quant, f"{family}:{base}")


def model_given(text: str) -> ModelSpec:
    """A model as the operator writes it: ``NAME`` or ``NAME=SIZE_GB``; an OperatorError otherwise."""
    name, equals, size = text.partition("=")
    if not equals:
        spec = model_named(name)
        if spec is None:
            raise OperatorError(_unknown("model", name, known_models(), "--model") + "; or give a size: NAME=SIZE_GB")
        return spec
    try:
        gigabytes = float(size)
    except ValueError:
        gigabytes = 0.0
    if not 0 < gigabytes < 1e6:
        raise OperatorError(f"--model {text}: the size after = is not a number of gigabytes; for example {name}=4.9")
    return sized_model(normalise_model(name), gigabytes)


def sized_model(name: str, gigabytes: float) -> ModelSpec:
    """A model nobody measured: shaped like the known chat model nearest in size."""
    rows = [row for row in calibration()["models"].values() if "tools" in row["capabilities"]]
    near = min(rows, key=lambda row: abs(row["file_GB"] - gigabytes))
    known = model_named(name)
    spec = known if known is not None else _model(name, near, None)
    return replace(spec, file_bytes=int(gigabytes * 1e9), parameter_size=f"{gigabytes / 0.61:.1f}B", salt=name)


def known_models() -> list[str]:
    """Every name that can be given without a size."""
    data = calibration()
    return sorted([*data["models"], *data["latest"]])


def _model(name: str, row: dict[str, Any], quant: str | None, salt: str = "") -> ModelSpec:
    return ModelSpec(
        name=name,
        file_bytes=int(row["file_GB"] * 1e9),
        layers=row["layers"],
        kv_bytes_per_token=4 * row["layers"] * row["kv_heads"] * row["head_dim"],
        family=row["family"],
        parameter_size=row["parameter_size"],
        quantization=quant or row["quantization"],
        context_length=row["context_length"],
        embedding_length=row["embedding_length"],
        capabilities=tuple(row["capabilities"]),
        salt=salt,
    )


def _cloud(name: str) -> ModelSpec:
    return ModelSpec(
        name=name,
        file_bytes=384,
        layers=0,
        kv_bytes_per_token=0,
        family="gptoss" if name.startswith("gpt-oss") else "cloud",
        parameter_size="116.8B",
        quantization="MXFP4",
        context_length=131072,
        embedding_length=2880,
        capabilities=("completion", "tools", "thinking"),
        remote=True,
    )


def _split_tag(tag: str) -> tuple[str, str | None]:
    """``8b-instruct-q4_K_M`` is ``8b``, quantised as said."""
    base, dash, rest = tag.partition("-")
    quant = rest.rpartition("-")[2].upper() if dash else ""
    return base, quant if quant.startswith(("Q", "F", "I")) else None


def _plain(name: str) -> str:
    words = name.lower().replace("nvidia", "").replace("geforce", "").replace("gib", "gb")
    return "".join(character for character in words if character.isalnum())


def _only_start(plain: str, known: dict[str, str]) -> str | None:
    """``RTX 4090`` is enough where only one known GPU starts so."""
    found = [key for start, key in known.items() if plain and start.startswith(plain)]
    return found[0] if len(found) == 1 else None


def _unknown(what: str, name: str, known: list[str], option: str) -> str:
    near = difflib.get_close_matches(name.lower(), [key.lower() for key in known], n=3, cutoff=0.3)
    names = [key for key in known if key.lower() in near] or known
    return f"{option} {name}: unknown {what}; nearest known: {', '.join(names)}"

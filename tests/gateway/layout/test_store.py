"""The models of a store, from its manifests and headers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from corral.gateway.layout.plan import StoredModel
from corral.gateway.layout.store import find_store, stored_models
from tests.gateway.layout.gguf_file import LLAMA, header, write_store

LIBRARY = "registry.ollama.ai/library"


def test_models_are_named_as_everywhere_and_sized_by_manifest_and_header(tmp_path: Path) -> None:
    write_store(
        tmp_path,
        {
            f"{LIBRARY}/llama3.1/70b": (header(LLAMA), 42_500_000_000),
            "hf.co/Someone/Model-GGUF/Q4": (b"no header", 5_000),
        },
    )
    assert stored_models(tmp_path) == (
        StoredModel("hf.co/someone/model-gguf:q4", 5_000, None, None),
        StoredModel("llama3.1:70b", 42_500_000_000, 327_680, 131_072),
    )


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    write_store(tmp_path, {f"{LIBRARY}/good/latest": (header(LLAMA), 10)})
    folder = tmp_path / "manifests" / LIBRARY
    (folder / "half").mkdir()
    (folder / "half" / "latest").write_text('{"layers": [')
    (folder / "half" / "cloud").write_text(json.dumps({"layers": []}))
    (folder / "half" / "large").write_text(" " * (2 << 20))
    (folder / "half" / "folder").mkdir()
    assert [model.name for model in stored_models(tmp_path)] == ["good:latest"]
    assert stored_models(tmp_path / "not there") == ()


def test_a_digest_cannot_lead_out_of_the_store(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(header(LLAMA))
    path = tmp_path / "store" / "manifests" / LIBRARY / "m" / "latest"
    path.parent.mkdir(parents=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": "../../secret", "size": 7}
    path.write_text(json.dumps({"layers": [layer]}))
    assert stored_models(tmp_path / "store") == (StoredModel("m:latest", 7, None, None),)


def test_hundreds_of_models_are_read_quickly(tmp_path: Path) -> None:
    tokens = {**LLAMA, "tokenizer.ggml.tokens": ["token"] * 5_000}
    models = {
        f"{LIBRARY}/m{at}/latest": (header({**tokens, "general.name": f"model {at}"}), at + 1) for at in range(500)
    }
    write_store(tmp_path, models)
    began = time.monotonic()
    assert len(stored_models(tmp_path)) == 500
    assert time.monotonic() - began < 3


def test_the_store_is_sought_where_ollama_would(tmp_path: Path) -> None:
    home, service = tmp_path / "home", tmp_path / "service"
    own = home / ".ollama" / "models"
    service.mkdir()
    assert find_store(Path("/given"), {"OLLAMA_MODELS": "/env", "HOME": str(home)}, service) == Path("/given")
    assert find_store(None, {"OLLAMA_MODELS": ' "/env" ', "HOME": str(home)}, service) == Path("/env")
    assert find_store(None, {"HOME": str(home)}, service) == service
    assert find_store(None, {"HOME": str(home)}, tmp_path / "not there") == own
    own.mkdir(parents=True)
    assert find_store(None, {"HOME": str(home)}, service) == own
    assert find_store(None, {}, tmp_path / "not there") is None


NOBODY = """
import os, sys
from pathlib import Path
from corral.gateway.layout.store import find_store, stored_models
os.setgid(65534); os.setgroups([]); os.setuid(65534)
print(stored_models(Path(sys.argv[1])), find_store(None, {"HOME": sys.argv[1]}, Path("/nowhere")))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_store_that_this_user_may_not_enter_holds_nothing() -> None:
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "manifests").mkdir()
        child = subprocess.run([sys.executable, "-c", NOBODY, name], capture_output=True, text=True, timeout=30)
        assert (child.stdout, child.stderr) == (f"() {name}/.ollama/models\n", "")

"""Corral as one file: made and run by hand (CORRAL_TRY_STANDALONE=1), for it takes half a minute."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.deploy.demo import chat, demo
from tests.deploy.dockerfile import ROOT


@pytest.mark.skipif("CORRAL_TRY_STANDALONE" not in os.environ, reason="run by hand, with CORRAL_TRY_STANDALONE=1")
@pytest.mark.timeout(300)
def test_the_demo_answers_from_the_one_file(tmp_path: Path) -> None:
    file = tmp_path / "corral.pyz"
    subprocess.run([str(ROOT / "deploy/standalone/build.sh"), str(file)], check=True, timeout=250)
    with demo([str(file)], tmp_path, SHIV_ROOT=str(tmp_path / "unpacked")) as card:
        assert chat(card["clients"])[-1]["done"] is True

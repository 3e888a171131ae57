"""How long a small copy between two GPUs takes: measured once, by a child process, and never guessed."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import corral
from corral.gateway.serve.gpus import GpuBoard, gpu_labels
from corral.model import GpuSurvey, GpuVendor

log: Final = logging.getLogger("corral.gateway")

DEADLINE_S: Final = 30.0
_REAP_S: Final = 1.0
"""A child that the driver holds cannot even be killed: it is left to the system."""

Links = dict[tuple[str, str], float]


async def measure_links(
    board: GpuBoard, into: Links, environ: Mapping[str, str], deadline_s: float = DEADLINE_S
) -> None:
    """When the GPUs are known, measure, and put the seconds ``into``, by the GPUs' labels."""
    await board.looked.wait()
    uuids = _measurable(board.survey)
    if len(uuids) < 2:
        log.info('links_not_measured reason="there are not two NVIDIA GPUs here"')
        return
    labels = gpu_labels(board.survey)
    lines, late = await _ask(uuids, environ, deadline_s)
    found = {(labels[line["a"]], labels[line["b"]]): float(line["seconds"]) for line in lines if "seconds" in line}
    into.update(found)
    problems = [str(line["problem"]) for line in lines if "problem" in line]
    if late:
        problems.append(f"the driver did not answer within {deadline_s:g} s")
    if problems:
        more = f" more={len(problems) - 1}" if len(problems) > 1 else ""
        log.warning('links_not_measured reason="%s"%s', problems[0], more)
    if found:
        log.info(
            "links_measured pairs=%d least_s=%.3g most_s=%.3g", len(found), min(found.values()), max(found.values())
        )


def _measurable(survey: GpuSurvey) -> list[str]:
    """Whole NVIDIA GPUs: the parts of a divided one cannot reach others."""
    return [
        gpu.uuid
        for gpu in survey.gpus
        if gpu.vendor is GpuVendor.NVIDIA and gpu.parent_uuid is None and not gpu.is_split
    ]


async def _ask(uuids: Sequence[str], environ: Mapping[str, str], deadline_s: float) -> tuple[list[Any], bool]:
    """The lines that the child printed, and whether it had to be ended because it was late."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "corral.probes.cuda_links", *uuids),
        env=_environment(uuids, environ),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert child.stdout is not None
    lines: list[Any] = []
    late = True
    try:
        async with asyncio.timeout(deadline_s):
            async for line in child.stdout:
                with suppress(ValueError):
                    lines.append(json.loads(line))
            late = False
            await child.wait()
    except TimeoutError:
        pass
    finally:
        await _end(child)
    return lines, late


async def _end(child: asyncio.subprocess.Process) -> None:
    if child.returncode is not None:
        return
    with suppress(ProcessLookupError):
        child.kill()
    with suppress(TimeoutError):
        async with asyncio.timeout(_REAP_S):
            await child.wait()


def _environment(uuids: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """The driver shows the child these GPUs and no other, and Python finds the same Corral."""
    path = os.pathsep.join(filter(None, (str(Path(corral.__path__[0]).parent), environ.get("PYTHONPATH"))))
    return {**environ, "CUDA_VISIBLE_DEVICES": ",".join(uuids), "PYTHONPATH": path}

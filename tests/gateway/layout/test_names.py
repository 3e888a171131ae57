"""GPU names of a configuration."""

from __future__ import annotations

import pytest

from corral.errors import ConfigError
from corral.gateway.layout.names import gpu_uuids
from corral.model import GpuSurvey
from tests.gateway.layout.machines import nvidia

SURVEY = GpuSurvey((nvidia(0, "NVIDIA RTX A6000"), nvidia(1, "NVIDIA RTX A6000")))
FIRST, SECOND = (gpu.uuid for gpu in SURVEY.gpus)


@pytest.mark.parametrize("name", ["1", SECOND, SECOND.upper(), "GPU-00000001"])
def test_index_uuid_and_its_beginning_name_a_gpu(name: str) -> None:
    assert gpu_uuids(["0", name], SURVEY) == (FIRST, SECOND)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("2", "replicas[0].gpus: there is no GPU 2 on this machine; known: 0 GPU-00000000-"),
        (FIRST[:-1] + "9", f"did you mean {FIRST}?"),
        ("GPU-0000000", "name it by its UUID"),
        ("GPU-0", "there is no GPU GPU-0"),
    ],
)
def test_a_name_that_fits_none_or_several_is_refused_with_what_there_is(name: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        gpu_uuids([name], SURVEY, "replicas[0].gpus")
    assert said in str(caught.value)


def test_why_there_is_no_gpu_is_passed_on() -> None:
    with pytest.raises(ConfigError, match="none was found; the driver was updated"):
        gpu_uuids(["0"], GpuSurvey(problems=("the driver was updated",)))

"""The box that `corral policy sim` assumes, and that it says what it assumed."""

from __future__ import annotations

import pytest

from corral.emulator.catalog import gpu_named, model_named
from corral.errors import OperatorError
from corral.gateway.config import parse_config
from corral.gateway.layout.estimate import shipped_sizes
from corral.gateway.layout.plan import Facts, StoredModel
from corral.laboratory.sim.box import configured_box, gpus_given, named_box, needs_facts
from corral.laboratory.sim.realgpus import gpu_meant
from corral.laboratory.sim.sizes import known_spec, specs_given, specs_of
from corral.laboratory.types import BoxReplica
from corral.model import Gpu, GpuSurvey, GpuVendor

CONFIG = parse_config(
    """
replicas:
  - {id: small, url: "http://127.0.0.1:21001", slots: 2, gpus: ["0"], models: ["llama3.1:8b"]}
  - {id: big, url: "http://127.0.0.1:21002", weight: 2.5, max_loaded: 2, pin: ["qwen2.5:7b"], keep_off: ["mistral:7b"]}
""",
    "corral.yaml",
)
OWNED = parse_config("gpus: auto\n", "corral.yaml")
LLAMA = model_named("llama3.1:8b")
QWEN = model_named("qwen2.5:7b")
assert LLAMA is not None
assert QWEN is not None
MODELS = (LLAMA, QWEN)
GIB = 1 << 30


def machine(*names: str) -> Facts:
    gpus = tuple(Gpu(f"GPU-{n:08d}", n, GpuVendor.NVIDIA, name, 20 * GIB) for n, name in enumerate(names))
    return Facts(survey=GpuSurvey(gpus=gpus), ram_bytes=64 * GIB)


def test_replicas_keep_what_the_configuration_says() -> None:
    box, seats = configured_box(CONFIG, MODELS, {}, None)
    small, big = box.replicas
    assert (small.slots, small.weight, small.models, small.max_loaded) == (2, 1.0, frozenset({"llama3.1:8b"}), 3)
    assert (big.weight, big.max_loaded, big.pinned) == (2.5, 2, frozenset({"qwen2.5:7b"}))
    assert big.kept_off == frozenset({"mistral:7b"})
    assert any("replica big is taken to have 4 slots" in text for text in seats.said)


def test_without_a_gpu_here_it_is_a_usual_one_as_fast_as_the_weight_and_said_so() -> None:
    box, seats = configured_box(CONFIG, MODELS, {}, machine())
    usual = gpu_named("RTX 4090 24GB")
    assert box.replicas[0].gpu == usual
    assert box.replicas[1].gpu.prefill_8b_tok_s == usual.prefill_8b_tok_s * 2.5
    assert seats.gpus["big"].startswith("assumed: RTX 4090 24GB")
    assert seats.gpus["big"].endswith("by its weight")


def test_gpus_of_this_machine_are_taken_by_name_with_their_own_memory() -> None:
    box, seats = configured_box(CONFIG, MODELS, {}, machine("NVIDIA GeForce RTX 3090 24GB"))
    assert box.replicas[0].gpu.step_base_s == gpu_named("RTX 3090 24GB").step_base_s
    assert box.replicas[0].gpu.vram_bytes == 20 * GIB
    assert "as found on this machine" in seats.gpus["small"]


def test_a_gpu_that_nobody_measured_has_its_memory_and_an_assumed_speed() -> None:
    box, seats = configured_box(CONFIG, MODELS, {}, machine("Voodoo 5"))
    assert box.replicas[0].gpu.vram_bytes == 20 * GIB
    assert "with the memory of Voodoo 5, whose speed is not known" in seats.gpus["small"]


def test_what_the_command_line_says_of_gpus_counts_more() -> None:
    box, seats = configured_box(CONFIG, MODELS, gpus_given(["A100 SXM 80GB", "small=L4 24GB"]), machine("RTX 3090"))
    assert [one.gpu.name for one in box.replicas] == ["L4 24GB", "A100 SXM 80GB"]
    assert seats.gpus["small"] == "L4 24GB, as --gpu says"


def test_a_gpu_of_no_replica_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(OperatorError, match=r"--gpu middle=…: there is no such replica; the replicas are small, big"):
        configured_box(CONFIG, MODELS, gpus_given(["middle=L4 24GB"]), None)


def test_owned_replicas_are_those_of_the_plan() -> None:
    box, _ = configured_box(OWNED, MODELS, {}, machine("RTX 3090 24GB", "RTX 3060 12GB"))
    assert [one.gpu.step_base_s for one in box.replicas] == [
        gpu_named("RTX 3090 24GB").step_base_s,
        gpu_named("RTX 3060 12GB").step_base_s,
    ]


def test_without_anything_it_is_a_box_of_the_laboratory_and_said_so() -> None:
    box, seats = configured_box(OWNED, MODELS, {}, machine())
    assert len(box.replicas) == 4
    assert "no replica and no GPU is known here, so the box is the laboratory's unequal-4" in seats.said


def test_this_machine_is_looked_at_only_where_it_matters() -> None:
    assert needs_facts(OWNED, {})
    assert needs_facts(CONFIG, {})
    assert not needs_facts(CONFIG, gpus_given(["small=L4 24GB"]))
    assert not needs_facts(CONFIG, gpus_given(["L4 24GB"]))


def test_a_box_by_name_takes_the_place_of_the_configuration() -> None:
    box, seats = named_box("mixed-8", MODELS)
    assert len(box.replicas) == 8
    assert box.models == MODELS
    assert "the replicas of the configuration play no part" in seats.said[0]
    with pytest.raises(OperatorError, match="--box mixed-9: unknown; known: equal-4"):
        named_box("mixed-9", MODELS)


def test_who_serves_what_is_as_in_the_gateway() -> None:
    box, _ = configured_box(CONFIG, MODELS, {}, None)
    small, big = box.replicas

    def served(model: str) -> list[BoxReplica]:
        return [one for one in box.replicas if box.serves(one, model)]

    assert served("llama3.1:8b") == [small]  # listed by one: nobody else
    assert served("qwen2.5:7b") == [big]
    assert served("mistral:7b") == []


def test_a_model_that_no_replica_may_serve_is_told() -> None:
    mistral = known_spec("mistral:7b", ())
    assert mistral is not None
    with pytest.raises(OperatorError, match=r"^no replica may serve mistral:7b: see `models` and `keep_off`"):
        configured_box(CONFIG, (MODELS[0], mistral), {}, None)


# -- the names of drivers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "gib", "meant"),
    [
        ("NVIDIA GeForce RTX 4090", 24, "RTX 4090 24GB"),
        ("NVIDIA A100-SXM4-80GB", 80, "A100 SXM 80GB"),
        ("NVIDIA A100 80GB PCIe", 80, "A100 PCIe 80GB"),
        ("NVIDIA A100-PCIE-40GB", 40, "A100 PCIe 40GB"),
        ("NVIDIA H100 80GB HBM3", 80, "H100 SXM 80GB"),
        ("NVIDIA H100 PCIe", 80, "H100 PCIe 80GB"),
        ("Tesla V100-SXM2-16GB", 16, "V100 PCIe 32GB"),
        ("Tesla T4", 15, "T4 16GB"),
        ("NVIDIA L4", 22, "L4 24GB"),
        ("NVIDIA L40S", 44, "L40S 48GB"),
        ("NVIDIA GeForce RTX 3090 Ti", 24, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16, None),
        ("AMD Instinct MI300X", 192, None),
        ("", 8, None),
    ],
)
def test_what_a_driver_calls_a_gpu_is_found_and_another_one_is_not_taken_for_it(
    name: str, gib: int, meant: str | None
) -> None:
    spec = gpu_meant(name, gib * GIB)
    assert (None if spec is None else spec.name) == meant


def test_a_name_with_its_memory_is_enough() -> None:
    found = gpus_given(["A100 PCIe 40GB", "x=L4"])
    assert [spec.name for spec in found.values()] == ["A100 PCIe 40GB", "L4 24GB"]


# -- sizes ----------------------------------------------------------------------------------------------------------


def test_sizes_are_those_given_then_the_stores_then_those_known() -> None:
    given = specs_given(["llama3.1:8b=7.5", "mine=3"])
    stored = (StoredModel("qwen2.5:7b", 5_100_000_000, 99_000, 4096),)
    found = specs_of(["llama3.1:8b", "qwen2.5:7b", "gemma3:4b", "mine:latest"], given, stored)
    assert [spec.file_bytes for spec in found][:2] == [7_500_000_000, 5_100_000_000]
    assert found[1].kv_bytes_per_token == 99_000
    assert found[3].file_bytes == 3_000_000_000
    assert [spec.name for spec in found] == ["llama3.1:8b", "qwen2.5:7b", "gemma3:4b", "mine:latest"]


def test_what_the_emulator_does_not_know_is_as_large_as_the_layout_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corral.laboratory.sim.sizes.model_named", lambda name: None)
    spec, shipped = known_spec("gemma3:4b", ()), shipped_sizes()["gemma3:4b"]
    assert spec is not None
    assert (spec.file_bytes, spec.kv_bytes_per_token) == (shipped.weights_bytes, shipped.kv_bytes_per_token)


def test_all_unknown_models_are_named_with_what_to_say_and_nothing_that_steers() -> None:
    with pytest.raises(OperatorError, match=r"these models: a:1, b\?\[31m:1\n.*--models a:1=4\.9,b\?\[31m:1=4\.9"):
        specs_of(["a:1", "llama3.1:8b", "b\x1b[31m:1"], {}, ())


@pytest.mark.parametrize("text", ["mine=", "mine=x", "mine=-1", "=4", " "])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(OperatorError, match=r"--models|nothing is known"):
        specs_given([text])

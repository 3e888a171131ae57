"""Which replicas there are, and what each of them is given."""

from __future__ import annotations

from dataclasses import replace

import pytest

from corral.errors import ConfigError
from corral.gateway.config import parse_config
from corral.gateway.layout.choose import make_plan
from corral.gateway.layout.plan import Facts, OllamaProgram, Plan, StoredModel
from corral.model import Gpu, LinkKind
from tests.gateway.layout import machines
from tests.gateway.layout.machines import GIB, MIB, NEW, OLD, amd, facts, links, mig, nvidia

BIG = "NVIDIA RTX A6000"
MIDDLE = "NVIDIA GeForce RTX 3090"
SMALL = "NVIDIA GeForce RTX 3060"
SEVENTY = StoredModel("llama3.1:70b", 42_500_000_000, 327_680, 131_072)


def plan(text: str, found: Facts) -> Plan:
    return make_plan(parse_config(text, "corral.yaml"), found)


def row(count: int, name: str = MIDDLE) -> list[Gpu]:
    return [nvidia(at, name) for at in range(count)]


def refused(text: str, found: Facts) -> str:
    with pytest.raises(ConfigError) as caught:
        plan(text, found)
    return str(caught.value)


def test_without_a_file_every_gpu_is_a_replica() -> None:
    made = plan("{}", machines.four_in_pairs())
    assert [replica.id for replica in made.replicas] == ["gpu0", "gpu1", "gpu2", "gpu3"]
    assert made.replicas[2].command == ("/usr/local/bin/ollama", "serve")
    assert [replica.gpus[0].index for replica in made.replicas] == [0, 1, 2, 3]
    assert (made.notes, made.advice) == ((), ())


def test_replicas_of_others_and_no_gpus_run_nothing() -> None:
    made = plan('replicas: [{id: a, url: "http://127.0.0.1:21001"}]', machines.one())
    assert made.replicas == ()
    assert "no Ollama of its own" in made.notes[0]


def test_the_order_of_replicas_is_that_of_the_gpus_not_of_the_survey() -> None:
    found = machines.four_in_pairs()
    turned = replace(found.survey, gpus=found.survey.gpus[::-1])
    assert plan("{}", replace(found, survey=turned)) == plan("{}", found)


# groups


def test_listed_groups_are_named_after_their_gpus_and_keep_their_order() -> None:
    made = plan("gpus: [[1, 0], [2, 4], {gpus: 3, id: chat}, [5, 6, 7]]", facts(row(8)))
    assert [replica.id for replica in made.replicas] == ["gpu0-1", "gpu2_4", "chat", "gpu5-7"]
    assert [gpu.index for gpu in made.replicas[0].gpus] == [1, 0]


def test_what_a_group_says_is_what_it_gets() -> None:
    text = "gpus: [{gpus: [0, 1], models: [Llama3.1:70B], slots: 3, weight: 2.5, split: row, env: {A: 1}}, 2]"
    made = plan(text, facts(row(3)))
    first, second = made.replicas
    assert (first.models, first.slots, first.weight) == (frozenset({"llama3.1:70b"}), 3, 2.5)
    assert (first.env["LLAMA_ARG_SPLIT_MODE"], first.env["A"]) == ("row", "1")
    assert second.models is None
    assert "A" not in second.env


def test_a_group_says_how_many_models_it_holds_which_of_them_always_and_which_never() -> None:
    first, second, third = plan(
        "gpus: [{gpus: [0, 1], max_loaded: 2, pin: [Chat], keep_off: [big]}, 2, {gpus: 3, max_loaded: 2,"
        " env: {OLLAMA_MAX_LOADED_MODELS: 5}}]",
        facts(row(4)),
    ).replicas
    assert (first.max_loaded, first.env["OLLAMA_MAX_LOADED_MODELS"]) == (2, "2")
    assert (first.pinned, first.kept_off) == (frozenset({"chat:latest"}), frozenset({"big:latest"}))
    assert "models in memory at most 2: gpus[0].max_loaded" in first.reasons
    assert (third.max_loaded, third.env["OLLAMA_MAX_LOADED_MODELS"]) == (5, "5")
    assert "models in memory at most 5: gpus[2].env.OLLAMA_MAX_LOADED_MODELS" in third.reasons
    assert "OLLAMA_MAX_LOADED_MODELS" not in second.env
    assert (second.max_loaded, second.pinned) == (3, frozenset())


def test_without_a_word_about_it_ollama_holds_three_models_per_gpu() -> None:
    assert [replica.max_loaded for replica in plan("gpus: [[0, 1], 2]", facts(row(3))).replicas] == [6, 3]
    assert plan("{}", facts([])).replicas[0].max_loaded == 3
    said = plan("ollama: {env: {OLLAMA_MAX_LOADED_MODELS: 0}}", facts(row(1))).replicas[0]
    assert said.max_loaded == 3, "0 is its own default"
    assert plan("ollama: {env: {OLLAMA_MAX_LOADED_MODELS: 1}}", facts(row(1))).replicas[0].max_loaded == 1
    both = plan("gpus: [0, {gpus: [1], max_loaded: 1}]\nollama: {max_loaded: 2}", facts(row(2))).replicas
    assert [(each.max_loaded, each.env["OLLAMA_MAX_LOADED_MODELS"]) for each in both] == [(2, "2"), (1, "1")]
    assert "models in memory at most 2: ollama.max_loaded" in both[0].reasons


def test_gpus_in_no_group_are_left_alone_and_said() -> None:
    assert "GPUs 0 and 2 are in no group and left alone." in plan("gpus: [1]", facts(row(3))).notes


def test_listed_models_only_is_said() -> None:
    made = plan("gpus: [{gpus: 0, models: [m]}]", facts(row(1)))
    assert any("no other than m:latest can be served" in note for note in made.notes)


@pytest.mark.parametrize(
    ("text", "found", "said"),
    [
        ("gpus: [0, 7]", facts(row(2)), "gpus[1]: there is no GPU 7 on this machine; known: 0 GPU-00000000"),
        ("gpus: [0]", facts(), "gpus[0]: there is no GPU 0 on this machine; none was found"),
        ("gpus: [0, GPU-00000000-aaaa-bbbb-cccc-000000000000]", facts(row(1)), "is already in gpus[0]"),
        ("gpus: [0]", machines.with_mig(), "is split by MIG and runs nothing by itself; name its devices instead: MIG"),
        ("gpus: [[0, 1]]", facts([nvidia(0, SMALL), amd(1)]), "NVIDIA and AMD GPUs cannot share a model"),
        ("gpus: [0]", facts([nvidia(0, SMALL), amd(0)]), "name it by its UUID"),
        ("gpus: [{gpus: [0, 1], split: row}]", facts(row(2), program=OLD), "gpus[0].split: Ollama 0.24.0 divides by"),
        ("gpus: [{gpus: [0], split: row}]", facts(row(2)), "gpus[0].split: there is one GPU in the group"),
        (
            'gpus: auto\nreplicas: [{id: gpu0, url: "http://127.0.0.1:21001"}]',
            facts(row(1)),
            "'gpu0' is already the id of replicas[0]",
        ),
        (
            "gpus: [[MIG-00000000-dddd-eeee-ffff-000000000000, MIG-00000000-dddd-eeee-ffff-000000000001]]",
            machines.with_mig(),
            "CUDA uses one MIG device at a time",
        ),
    ],
)
def test_what_the_machine_does_not_have_is_refused(text: str, found: Facts, said: str) -> None:
    assert said in refused(text, found)


# which GPUs auto takes


def test_both_vendors_get_replicas_whose_names_differ() -> None:
    made = plan("{}", facts([nvidia(0, SMALL), amd(0)]))
    assert [replica.id for replica in made.replicas] == ["gpu0", "amd0"]
    assert made.replicas[0].env["ROCR_VISIBLE_DEVICES"] == "-1"
    assert made.replicas[1].env["CUDA_VISIBLE_DEVICES"] == "-1"


def test_a_gpu_that_is_split_and_has_no_part_runs_nothing() -> None:
    made = plan("{}", facts([replace(nvidia(0, MIDDLE), is_split=True)]))
    assert [replica.id for replica in made.replicas] == ["cpu"]
    assert "it has no MIG device, so nothing runs on it" in made.notes[0]


def test_a_gpu_with_shared_memory_is_used_where_it_is_the_only_one() -> None:
    made = plan("{}", facts([amd(0, None, unified=True)], ram_bytes=64 * GIB))
    assert made.replicas[0].id == "gpu0"
    assert made.replicas[0].env["OLLAMA_IGPU_ENABLE"] == "1"
    assert made.replicas[0].context_length == 32768


@pytest.mark.parametrize(
    ("visible", "ids"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,2"}, ["gpu0", "gpu2"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-00000001"}, ["gpu1"]),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, ["cpu"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, ["cpu"]),
        ({"ROCR_VISIBLE_DEVICES": "-1"}, ["gpu0", "gpu1", "gpu2"]),
    ],
)
def test_gpus_hidden_from_corral_are_left_alone(visible: dict[str, str], ids: list[str]) -> None:
    made = plan("{}", facts(row(3), visible=visible))
    assert [replica.id for replica in made.replicas] == ids
    assert bool(made.notes) == (len(ids) < 3)


# context, slots, weight


@pytest.mark.parametrize(
    ("names", "context", "slots"),
    [
        ([MIDDLE], 32768, [2]),
        ([SMALL], 4096, [4]),
        ([BIG], 32768, [4]),
        ([BIG, SMALL], 4096, [4, 4]),
        (["NVIDIA H100 80GB HBM3", MIDDLE], 32768, [4, 2]),
    ],
)
def test_context_is_the_smallest_gpus_and_slots_are_what_fits(names: list[str], context: int, slots: list[int]) -> None:
    made = plan("{}", facts([nvidia(at, name) for at, name in enumerate(names)]))
    assert {replica.context_length for replica in made.replicas} == {context}
    assert {replica.env["OLLAMA_CONTEXT_LENGTH"] for replica in made.replicas} == {str(context)}
    assert [replica.slots for replica in made.replicas] == slots
    assert [replica.env["OLLAMA_NUM_PARALLEL"] for replica in made.replicas] == [str(count) for count in slots]


def test_memory_that_is_not_known_is_not_zero() -> None:
    made = plan("{}", facts([replace(nvidia(0, MIDDLE), memory_bytes=None)]))
    assert (made.replicas[0].context_length, made.replicas[0].slots) == (4096, 1)
    assert "slots 1: its GPU memory is not known" in made.replicas[0].reasons


def test_the_file_overrules_context_slots_and_the_rest() -> None:
    text = "ollama: {context_length: 8192, parallel: 3, keep_alive: 5m, host_cache_bytes: 1073741824}"
    env = plan(text, facts(row(1))).replicas[0].env
    assert (env["OLLAMA_CONTEXT_LENGTH"], env["OLLAMA_NUM_PARALLEL"]) == ("8192", "3")
    assert (env["OLLAMA_KEEP_ALIVE"], env["LLAMA_ARG_CACHE_RAM"]) == ("5m", "1024")


def test_the_reason_names_the_env_that_overrules_a_number() -> None:
    text = "gpus: [{gpus: 0, env: {OLLAMA_NUM_PARALLEL: 8}}]\nollama: {env: {OLLAMA_CONTEXT_LENGTH: 2048}}"
    replica = plan(text, facts(row(1))).replicas[0]
    assert "slots 8: gpus[0].env.OLLAMA_NUM_PARALLEL" in replica.reasons
    assert "context 2048: ollama.env.OLLAMA_CONTEXT_LENGTH" in replica.reasons
    assert not [reason for reason in replica.reasons if reason.startswith(("slots 4", "context 4096"))]


def test_an_env_that_chooses_other_gpus_is_said() -> None:
    made = plan("ollama: {env: {CUDA_VISIBLE_DEVICES: 0}}", facts(row(2)))
    assert any(text.startswith("ollama.env.CUDA_VISIBLE_DEVICES overrules the GPUs") for text in made.advice)
    made = plan("gpus: [0, {gpus: 1, env: {ROCR_VISIBLE_DEVICES: 0}}]", facts(row(2)))
    assert any(text.startswith("gpus[1].env.ROCR_VISIBLE_DEVICES overrules") for text in made.advice)


def test_what_env_says_in_the_end_is_what_corral_counts_with() -> None:
    replica = plan("ollama: {env: {OLLAMA_NUM_PARALLEL: 8, OLLAMA_CONTEXT_LENGTH: 2048}}", facts(row(1))).replicas[0]
    assert (replica.slots, replica.context_length) == (8, 2048)


def test_prompt_caches_of_all_replicas_take_a_quarter_of_the_host_at_most() -> None:
    made = plan("{}", facts(row(4), ram_bytes=32 * GIB))
    assert {replica.env["LLAMA_ARG_CACHE_RAM"] for replica in made.replicas} == {"2048"}


def test_weights_compare_bandwidth_and_are_all_1_where_one_is_not_known() -> None:
    gpus = [nvidia(0, MIDDLE), nvidia(1, SMALL)]
    assert [replica.weight for replica in plan("{}", facts(gpus)).replicas] == [2.6, 1.0]
    unknown = plan("{}", facts([gpus[0], replace(gpus[1], memory_bandwidth_bytes_s=None)]))
    assert [replica.weight for replica in unknown.replicas] == [1.0, 1.0]
    assert any("bandwidth of some GPUs is not known" in note for note in unknown.notes)


def test_a_mig_device_has_its_share_of_its_parents_bandwidth() -> None:
    weights = {replica.id: replica.weight for replica in plan("{}", machines.with_mig()).replicas}
    assert weights == {"gpu0-mig0": 1.0, "gpu0-mig1": 1.0, "gpu1": 2.02}


# NUMA


def test_a_replica_is_kept_on_the_cpus_next_to_its_gpus() -> None:
    made = plan("{}", machines.four_in_pairs())
    assert (made.replicas[0].cpus, made.replicas[0].numa_node) == (tuple(range(32)), 0)
    assert (made.replicas[3].cpus, made.replicas[3].numa_node) == (tuple(range(32, 64)), 1)
    assert plan("ollama: {bind_numa: false}", machines.four_in_pairs()).replicas[0].cpus == ()


def test_a_group_over_two_nodes_or_a_machine_of_one_is_kept_nowhere() -> None:
    assert plan("gpus: [[1, 2]]", machines.four_in_pairs()).replicas[0].cpus == ()
    only = facts([nvidia(0, MIDDLE, 0, range(8))], cpus=range(8))
    assert (plan("{}", only).replicas[0].cpus, plan("{}", only).replicas[0].numa_node) == ((), None)


def test_cpus_that_this_process_may_not_use_are_not_asked_for() -> None:
    found = replace(machines.four_in_pairs(), cpus=tuple(range(16, 64)))
    assert plan("{}", found).replicas[0].cpus == tuple(range(16, 32))
    assert plan("{}", replace(found, cpus=tuple(range(32, 64)))).replicas[0].cpus == ()


# unequal groups


def unequal() -> list[Gpu]:
    return [nvidia(0, BIG), nvidia(1, MIDDLE)]


def test_unequal_gpus_get_layers_in_proportion_to_free_memory() -> None:
    """Where the models are known to fit; else llama.cpp's own division, which spills what does not, is left on."""
    free = {unequal()[0].uuid: 40 * GIB, unequal()[1].uuid: 20 * GIB}
    text = "gpus: [{gpus: [1, 0], models: [llama3.1:70b]}]\nmemory_reserve_bytes: 1073741824"
    found = facts(unequal(), models=[SEVENTY], free_bytes=free)
    assert plan(text, found).replicas[0].env["LLAMA_ARG_TENSOR_SPLIT"] == f"{19 * 1024},{39 * 1024}"
    open_to_any = plan("gpus: [[0, 1]]", found).replicas[0]
    assert "LLAMA_ARG_TENSOR_SPLIT" not in open_to_any.env
    assert any("llama.cpp divides them so itself" in reason for reason in open_to_any.reasons)
    assert "LLAMA_ARG_TENSOR_SPLIT" in plan("gpus: [{gpus: [0, 1], split: row}]", found).replicas[0].env


def test_an_old_ollama_is_told_in_its_own_words() -> None:
    found = facts(unequal(), models=[SEVENTY], program=OLD)
    replica = plan("gpus: [{gpus: [0, 1], models: [llama3.1:70b]}]\nmemory_reserve_bytes: 1000", found).replicas[0]
    assert (replica.env["OLLAMA_SCHED_SPREAD"], replica.env["OLLAMA_GPU_OVERHEAD"]) == ("1", "1000")
    assert not [name for name in replica.env if name.startswith("LLAMA_ARG_")]
    assert any("Ollama before 0.30 divides them so itself" in reason for reason in replica.reasons)


@pytest.mark.parametrize("version", [None, "0.0.0", "nonsense"])
def test_a_version_that_is_not_known_is_taken_for_a_new_one_and_said(version: str | None) -> None:
    made = plan("{}", facts(row(1), program=OllamaProgram("/bin/ollama", version)))
    assert "LLAMA_ARG_CACHE_RAM" in made.replicas[0].env
    assert any("taken for 0.30 or newer" in note for note in made.notes)


def test_no_program_is_said() -> None:
    made = plan("ollama: {binary: my-ollama}", facts(row(1), program=None))
    assert made.replicas[0].command == ("my-ollama", "serve")
    assert "No program 'my-ollama' was found" in made.notes[0]


def test_a_version_that_ignores_mig_is_advised_against() -> None:
    found = replace(machines.with_mig(), program=OllamaProgram("/bin/ollama", "0.13.5"))
    assert any("ignores MIG devices" in text for text in plan("{}", found).advice)
    assert plan("{}", machines.with_mig()).advice == ()


# large models


def large(found: Facts, more: str = "") -> Plan:
    return plan(f"large_models: [llama3.1:70b]\n{more}", found)


def test_a_large_model_takes_the_nvlink_pair_and_the_others_stay_single() -> None:
    gpus = row(4, BIG)
    joined = links(gpus, {(1, 2): LinkKind.NVLINK}, LinkKind.PCIE_SWITCH)
    made = large(facts(gpus, joined))
    assert [(replica.id, replica.models) for replica in made.replicas] == [
        ("gpu0", None),
        ("gpu1-2", frozenset({"llama3.1:70b"})),
        ("gpu3", None),
    ]
    assert made.replicas[1].env["OLLAMA_SCHED_SPREAD"] == "1"
    assert "GPUs 1 and 2 are joined by NVLink x4" in made.replicas[1].reasons


def test_what_the_store_says_of_a_model_comes_before_what_is_known_of_it() -> None:
    heavy = replace(SEVENTY, weights_bytes=120_000_000_000)
    made = large(facts(row(4, BIG), models=[heavy]))
    assert [replica.id for replica in made.replicas] == ["gpu0-3"]


def test_a_large_model_that_fits_every_gpu_gets_no_group() -> None:
    made = large(facts([nvidia(0, "NVIDIA H100 80GB HBM3"), nvidia(1, "NVIDIA H100 80GB HBM3")]))
    assert [replica.models for replica in made.replicas] == [None, None]
    assert any("fits every GPU: it gets no group" in note for note in made.notes)


def test_a_large_model_that_fits_one_gpu_only_gets_that_one() -> None:
    made = large(facts([nvidia(0, MIDDLE), nvidia(1, "NVIDIA H100 80GB HBM3")]))
    assert [(replica.id, replica.models) for replica in made.replicas] == [
        ("gpu0", None),
        ("gpu1", frozenset({"llama3.1:70b"})),
    ]


def test_where_no_gpu_is_left_the_group_serves_the_other_models_too() -> None:
    made = large(facts(row(2, BIG)))
    assert [(replica.id, replica.models) for replica in made.replicas] == [("gpu0-1", None)]
    other = 'gpus: auto\nreplicas: [{id: a, url: "http://127.0.0.1:21001"}]'
    assert large(facts(row(2, BIG)), other).replicas[0].models == frozenset({"llama3.1:70b"})


def test_two_large_models_share_a_group_that_holds_each() -> None:
    made = plan("large_models: [qwen2.5:72b, llama3.1:70b]", facts(row(3, BIG)))
    assert [(replica.id, replica.models) for replica in made.replicas] == [
        ("gpu0-1", frozenset({"llama3.1:70b", "qwen2.5:72b"})),
        ("gpu2", None),
    ]


def test_the_context_and_the_slots_asked_for_count_in_what_is_needed() -> None:
    assert large(facts(row(4, BIG))).replicas[0].id == "gpu0-1"
    more = "ollama: {context_length: 65536, parallel: 2}"
    assert large(facts(row(4, BIG)), more).replicas[0].id == "gpu0-2"


def test_a_large_model_that_nothing_holds_is_said_with_a_way_out() -> None:
    made = large(facts(row(2)))
    assert [replica.id for replica in made.replicas] == ["gpu0", "gpu1"]
    assert "gets no group" in made.advice[0]
    assert "pull it and start again" in plan("large_models: [unheard-of]", facts(row(2))).advice[0]


def test_mig_devices_are_never_put_together() -> None:
    parent = replace(nvidia(0, BIG), is_split=True)
    made = large(facts([parent, mig(parent, 0, 24564 * MIB), mig(parent, 1, 24564 * MIB)]))
    assert [replica.id for replica in made.replicas] == ["gpu0-mig0", "gpu0-mig1"]


def test_the_signature_changes_with_what_needs_a_new_process_only() -> None:
    first = plan("{}", facts(row(1))).replicas[0]
    assert plan("{}", facts(row(1), program=NEW)).replicas[0].signature == first.signature
    assert plan("ollama: {parallel: 1}", facts(row(1))).replicas[0].signature != first.signature
    assert replace(first, weight=9.0, reasons=()).signature == first.signature
    assert plan("gpus: [{gpus: 0, pin: [a]}]", facts(row(1))).replicas[0].signature == first.signature
    assert plan("gpus: [{gpus: 0, max_loaded: 1}]", facts(row(1))).replicas[0].signature != first.signature

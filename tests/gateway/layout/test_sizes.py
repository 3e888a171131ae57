"""The shipped sizes of models."""

from __future__ import annotations

from corral.gateway.layout.estimate import GIB, context_tier, find_model, gib, need_bytes, shipped_sizes
from corral.gateway.layout.plan import StoredModel


def test_the_models_that_guides_name_are_known() -> None:
    for name in ("deepseek-r1:70b", "llama3.1:70b", "qwen2.5:72b"):
        model = find_model(name, ())
        assert model is not None
        assert need_bytes(model, 4096, 1, 2) > 40 * GIB


def test_every_shipped_size_is_whole() -> None:
    for name, model in shipped_sizes().items():
        assert model.name == name
        assert model.weights_bytes > 10_000_000
        assert model.kv_bytes_per_token
        assert model.context_length


def test_a_model_takes_no_more_context_than_it_was_trained_for() -> None:
    model = StoredModel("m", 1_000, 10, 2048)
    assert need_bytes(model, 32768, 2, 0) == 1_000 + 10 * 2048 * 2


def test_keys_and_values_that_are_not_known_are_guessed_by_weight() -> None:
    assert need_bytes(StoredModel("m", 42_500_000_000, None, None), 1000, 1, 0) > 42_500_000_000 + 300_000_000


def test_the_tiers_are_ollamas_up_to_the_cap() -> None:
    sizes = (8 * GIB, 23 * GIB, 47 * GIB, 23 * GIB - 1, 640 * GIB)
    assert [context_tier(size) for size in sizes] == [4096, 32768, 32768, 4096, 32768]


def test_sizes_are_said_for_people() -> None:
    assert [gib(size) for size in (512 << 20, 9 * GIB, int(9.6 * GIB), 24 * GIB)] == [
        "512 MiB",
        "9 GiB",
        "9.6 GiB",
        "24 GiB",
    ]

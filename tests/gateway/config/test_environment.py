"""Settings from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from corral.errors import ConfigError
from corral.gateway.config import Address, Config
from corral.gateway.config.environment import VARIABLES
from corral.gateway.config.known_variables import unknown_variables
from corral.gateway.config.sources import From, Settled, Sources


def settled(environ: dict[str, str], text: str | None = None, folder: Path = Path()) -> Settled:
    if text is None:
        return Sources(None, environ).settle()
    path = folder / "corral.yaml"
    path.write_text(text)
    return Sources(path, environ).settle()


def test_the_schedulers_that_guides_name_choose_the_policy() -> None:
    assert settled({"OLLAMA_SCHEDULER": "round-robin"}).config.policy.name == "round-robin"
    assert settled({"OLLAMA_SCHEDULER": "load-aware"}).config.policy.name == "weighted-least-load"
    assert settled({}).config == Config()
    assert settled({"OLLAMA_SCHEDULER": " "}).config == Config()


def test_the_interval_is_in_milliseconds_and_for_both_kinds_of_probes() -> None:
    probes = settled({"OLLAMA_SCHEDULER_INTERVAL": "250"}).config.probes
    assert (probes.gpu_interval_s, probes.ollama_interval_s) == (0.25, 0.25)


SAID = {
    "OLLAMA_NUM_PARALLEL": "3",
    "OLLAMA_CONTEXT_LENGTH": "8192",
    "OLLAMA_KEEP_ALIVE": '"5m"',
    "OLLAMA_MAX_LOADED_MODELS": "2",
    "OLLAMA_MODELS": "/srv/models",
}


def test_ollamas_own_variables_are_those_of_the_ollamas_that_corral_runs(tmp_path: Path) -> None:
    ollama = settled(SAID).config.ollama
    assert (ollama.parallel, ollama.context_length, ollama.keep_alive) == (3, 8192, "5m")
    assert (ollama.max_loaded, ollama.models) == (2, Path("/srv/models"))
    assert settled({"OLLAMA_KEEP_ALIVE": "1h30m"}).config.ollama.keep_alive == "1h30m"
    assert settled({"OLLAMA_NUM_PARALLEL": "0", "OLLAMA_MAX_LOADED_MODELS": "0"}).config == Config()
    text = "ollama: {parallel: 2, context_length: 4096, keep_alive: 1h, max_loaded: 1, models: /m}\n"
    assert settled(SAID, text, tmp_path).config == settled({}, text, tmp_path).config


def test_a_file_wins_by_what_it_says_even_where_that_is_the_default(tmp_path: Path) -> None:
    text = 'ollama: {keep_alive: "-1"}\nlisten: 127.0.0.1:11434\nqueue: {max_wait_s: 5}\norigins: []\n'
    said = {"OLLAMA_KEEP_ALIVE": "5m", "OLLAMA_HOST": ":1", "OLLAMA_MAX_QUEUE": "7", "OLLAMA_ORIGINS": "*"}
    config = settled(said, text, tmp_path).config
    assert (config.ollama.keep_alive, config.listen, config.origins) == ("-1", Address("127.0.0.1", 11434), ())
    assert (config.queue.max_requests, config.queue.max_wait_s) == (7, 5)


def test_a_policy_or_probes_of_the_file_go_before_the_environment(tmp_path: Path) -> None:
    said = {"OLLAMA_SCHEDULER": "round-robin", "OLLAMA_SCHEDULER_INTERVAL": "99"}
    text = "policy: {cold_penalty: 1}\nprobes: {gpu_interval_s: 5}\n"
    assert settled(said, text, tmp_path).config == settled({}, text, tmp_path).config


def test_where_corral_listens_comes_from_ollama_host_and_corrals_own_variables_win(tmp_path: Path) -> None:
    assert settled({"OLLAMA_HOST": "0.0.0.0"}).config.listen == Address("0.0.0.0", 11434)
    both = {"OLLAMA_HOST": ":1", "CORRAL_LISTEN": "[::]:2", "CORRAL_ADMIN_LISTEN": "0.0.0.0:3"}
    for found in (settled(both), settled(both, "listen: 127.0.0.1:9\nadmin_listen: 127.0.0.1:8\n", tmp_path)):
        assert (found.config.listen, found.config.admin_listen) == (Address("::", 2), Address("0.0.0.0", 3))
        assert str(found.origin("listen")) == "CORRAL_LISTEN"
        assert found.origin("admin_listen").kind is From.ENVIRONMENT


def test_origins_are_a_list_with_commas() -> None:
    origins = settled({"OLLAMA_ORIGINS": "https://chat.example, app://*,"}).config.origins
    assert origins == ("https://chat.example", "app://*")


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        (
            "OLLAMA_SCHEDULER",
            "fastest",
            "OLLAMA_SCHEDULER=fastest: cannot be used as policy; there is no such scheduler",
        ),
        ("OLLAMA_SCHEDULER_INTERVAL", "2s", "expected whole milliseconds from 50"),
        ("OLLAMA_SCHEDULER_INTERVAL", "1", "expected whole milliseconds from 50 to 3600000"),
        ("OLLAMA_NUM_PARALLEL", "many", "OLLAMA_NUM_PARALLEL=many: cannot be used as ollama.parallel"),
        ("OLLAMA_KEEP_ALIVE", "long", "OLLAMA_KEEP_ALIVE=long: cannot be used as ollama.keep_alive"),
        ("OLLAMA_MAX_QUEUE", "0", "OLLAMA_MAX_QUEUE=0: cannot be used as queue.max_requests"),
        ("OLLAMA_ORIGINS", "chat.example", "expected origins with commas between"),
        ("OLLAMA_HOST", "a b", "OLLAMA_HOST=a b: cannot be used as listen; 'a b' is not a host name"),
        ("CORRAL_LISTEN", "11434", "CORRAL_LISTEN=11434: cannot be used as listen; has no port"),
    ],
)
def test_a_wrong_value_is_named_with_its_variable(name: str, value: str, wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settled({name: value})
    assert wanted in str(caught.value)


def test_an_unknown_variable_is_told_with_the_nearest_known_one() -> None:
    known = {variable.name: "" for variable in VARIABLES}
    said = {**known, "OLLAMA_NUM_PARALEL": "1", "CORRAL_LISTNE": "1", "OLLAMA_XYZ": "1", "OLLAMAX": "1"}
    assert unknown_variables(said) == [
        "CORRAL_LISTNE is set, but Corral knows no such variable; did you mean CORRAL_LISTEN?",
        "OLLAMA_NUM_PARALEL is set, but neither Ollama nor Corral knows it; did you mean OLLAMA_NUM_PARALLEL?",
        "OLLAMA_XYZ is set, but neither Ollama nor Corral knows it",
    ]


def test_what_kubernetes_sets_for_services_of_these_names_is_no_slip_of_the_pen() -> None:
    names = ("OLLAMA_SERVICE_HOST", "OLLAMA_SERVICE_PORT", "OLLAMA_SERVICE_PORT_HTTP", "OLLAMA_PORT")
    assert unknown_variables([*names, "CORRAL_PORT_11434_TCP", "CORRAL_PORT_11434_TCP_ADDR", "OLLAMA_DEBUG"]) == []

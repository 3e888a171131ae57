"""Every mistake in a configuration file is answered with its place and what to do."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from corral.errors import ConfigError
from corral.gateway.config import Address, Config, load_config, parse_config
from corral.model import Replica

LEAST = 'replicas:\n  - {id: a, url: "http://127.0.0.1:21001"}\n'

SECOND = '  - {id: b, url: "http://127.0.0.1:21002"'

WHOLE = """
listen: 0.0.0.0:11434
admin_listen: "[::1]:11435"
replicas:
  - {id: a, url: "http://127.0.0.1:21001", weight: 2.5, slots: 4}
  - {id: b.2, url: "http://gpu-box:11434/", max_loaded: 2, pin: [Llama3.1, b:1], keep_off: [big]}
policy: {path: ./mine.py, name: Mine, depth: 3, names: [x, y]}
queue: {max_requests: 8, max_wait_s: 5, order: wspt, fair: false, quantum_s: 10, age_s: 15}
placement: {enabled: false, canonicalise: {num_ctx: {Llama3.1: 8192, b:1: 4096}}}
probes: {gpu_interval_s: 3, ollama_interval_s: 0.5}
timeouts: {connect_s: 1, head_s: 5, drain_s: 0, stall_s: 10, idle_s: 60}
limits: {max_body_bytes: 1048576, max_head_bytes: 8192}
origins: ["https://chat.example", "app://*", "*"]
hosts: [ollama.example.com]
"""


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "corral.yaml")
    assert caught.value.exit_code == 78
    return str(caught.value)


def test_a_store_may_have_a_folder_and_must_have_a_replica() -> None:
    two = LEAST + '  - {id: b, url: "http://127.0.0.1:21002", store: far}\n'
    config = parse_config(two + "stores: {far: {path: models}, shared: {path: /data}}\n", "/etc/corral.yaml")
    assert {name: str(store.path) for name, store in config.stores.items()} == {"far": "/etc/models", "shared": "/data"}
    assert "stores.near: no replica has this store; known: shared, far" in refused(two + "stores: {near: {path: /x}}\n")
    assert "stores.far.path: is missing" in refused(two + "stores: {far: {}}\n")
    assert "expected names, each with keys and values of its own" in refused(two + "stores: [far]\n")
    assert "Corral's own Ollamas need no entry" in refused("gpus: auto\nstores: {shared: {path: /x}}\n")


def test_one_replica_is_enough_and_everything_else_has_the_documented_default() -> None:
    config = parse_config(LEAST, "corral.yaml")
    assert config.replicas[0].to_replica() == Replica("a", "127.0.0.1", 21001, 1.0, None)
    assert (config.listen, config.admin_listen) == (Address("127.0.0.1", 11434), Address("127.0.0.1", 11435))
    assert config.policy.name == "weighted-least-load"
    assert (config.queue.max_requests, config.queue.max_wait_s) == (512, 300)
    assert (config.queue.order, config.queue.fair, config.queue.quantum_s, config.queue.age_s) == ("fcfs", True, 20, 30)
    assert config.placement.enabled
    assert config.placement.canonicalise.num_ctx is None
    assert (config.probes.gpu_interval_s, config.probes.ollama_interval_s) == (2, 1)
    timeouts = config.timeouts
    assert (timeouts.connect_s, timeouts.head_s, timeouts.drain_s) == (2, 20, 300)
    assert (timeouts.stall_s, timeouts.idle_s) == (30, 300)
    assert (config.limits.max_body_bytes, config.limits.max_head_bytes) == (67108864, 32768)
    assert (config.origins, config.hosts) == ((), ())


def test_every_key_is_read() -> None:
    config = parse_config(WHOLE, "/etc/corral/corral.yaml")
    assert str(config.listen) == "0.0.0.0:11434"
    assert str(config.admin_listen) == "[::1]:11435"
    assert config.replicas[0].to_replica() == Replica("a", "127.0.0.1", 21001, 2.5, 4)
    assert str(config.replicas[1].url) == "http://gpu-box:11434"
    assert config.policy.name == "Mine"
    assert config.policy.path == Path("/etc/corral/mine.py")
    assert config.policy.options == {"depth": 3, "names": ["x", "y"]}
    second = config.replicas[1].to_replica()
    assert (second.max_loaded, second.pinned, second.kept_off) == (
        2,
        frozenset({"llama3.1:latest", "b:1"}),
        frozenset({"big:latest"}),
    )
    queue = config.queue
    assert (queue.max_requests, queue.max_wait_s) == (8, 5)
    assert (queue.order, queue.fair, queue.quantum_s, queue.age_s) == ("wspt", False, 10, 15)
    assert not config.placement.enabled
    assert config.placement.canonicalise.num_ctx == {"llama3.1:latest": 8192, "b:1": 4096}
    assert config.timeouts.drain_s == 0
    assert config.limits.max_head_bytes == 8192
    assert config.origins == ("https://chat.example", "app://*", "*")
    assert config.hosts == ("ollama.example.com",)


def test_anchors_and_merge_keys_work() -> None:
    text = 'replicas:\n - &d {id: a, url: "http://a:1", weight: 2}\n - {<<: *d, id: b, url: "http://b:1"}\n'
    assert [replica.weight for replica in parse_config(text, "x").replicas] == [2, 2]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("replica: []\n", ["corral.yaml:1:1: replica: unknown key; did you mean 'replicas'?"]),
        ("backends: []\n", ["did you mean 'replicas'?"]),
        (LEAST + "queue: {max_request: 3}\n", ["corral.yaml:3:9: queue.max_request: unknown key", "'max_requests'"]),
        ('replicas:\n - {id: a, host: "http://a:1"}\n', ["replicas[0].host: unknown key; did you mean 'url'?"]),
        (LEAST + "qzx: 1\n", ["corral.yaml:3:1: qzx: unknown key; known keys here: replicas, "]),
        (LEAST + "replicas: []\n", ["corral.yaml:3:1: replicas: given twice; the first is in line 1"]),
        (LEAST + "queue: {max_wait_s: 1,\n max_wait_s: 2}\n", ["corral.yaml:4:2: queue.max_wait_s: given twice"]),
        ("replicas: []\n", ["corral.yaml:1:11: replicas: is empty", "http://127.0.0.1:21001"]),
        ("replicas: {id: a}\n", ["replicas: expected a list", "keys and values"]),
        ("replicas: [a]\n", ["replicas[0]: expected keys and values"]),
        ("- 1\n", ["corral.yaml:1:1: expected keys and values (name: value), found a list"]),
        ("", ["corral.yaml: is empty", "replicas:"]),
        ("# only a comment\n", ["is empty"]),
        ("\n", ["is empty"]),
        (LEAST + "\tqueue: 1\n", ["corral.yaml:3:1: not valid YAML: indented with a tab; use spaces"]),
        ("replicas: [\n", ["corral.yaml:2:1: not valid YAML"]),
        ("a: b: c\n", ["corral.yaml:1:5: not valid YAML: mapping values are not allowed here"]),
        ("--- {}\n--- {}\n", ["corral.yaml:2:1", "a single document"]),
        ("a: *b\n", ["corral.yaml:1:4", "undefined alias"]),
        ("a: &a [*a]\n", ["corral.yaml:1: an anchor that contains itself"]),
        ("[" * 20_000, ["nested too deeply"]),
        ("x\x01\n", ["corral.yaml:1: not text"]),
        (LEAST + "? [a]\n: 1\n", ["a key must be a plain word"]),
        (LEAST + "timeouts:\n", ["corral.yaml:3:10: timeouts: expected keys and values"]),
        (LEAST + "listen:\n", ["listen: expected text, found nothing; give it a value or remove the key"]),
    ],
)
def test_a_mistake_in_the_shape_is_named_with_its_place(text: str, wanted: list[str]) -> None:
    message = refused(text)
    for part in wanted:
        assert part in message


@pytest.mark.parametrize(
    ("replica", "wanted"),
    [
        ("id: 1", ["replicas[0].id: expected text, found 1; put it in quotes"]),
        ("id: no", ["found no; put it in quotes"]),
        ("id: 'a b'", ["up to 64 letters, digits, dots, dashes and underscores", "'a b'"]),
        (f"id: {'x' * 65}", ["up to 64 letters"]),
        ("weight: 0", ["expected a number > 0.0, found 0"]),
        ("weight: -1", ["> 0.0, found -1"]),
        ("weight: .nan", ["> 0.0, found .nan"]),
        ("weight: .inf", ["found .inf"]),
        ("weight: yes", ["expected a number, found yes"]),
        ("weight: '2'", ["write a plain number without unit or quotes"]),
        ("slots: 0", ["expected a whole number >= 1, found 0"]),
        ("slots: 1.5", ["expected a whole number", "found 1.5"]),
        ("max_loaded: 0", ["expected a whole number >= 1, found 0"]),
        ("pin: big", ["expected a list"]),
        ("slots: [1]", ["expected a whole number", "found a list"]),
        ("slots: !!timestamp x", ["cannot be read as timestamp"]),
        ("slots: !!python/name:os.getpid x", ["cannot be read: could not determine a constructor"]),
        ("url: https://a:1", ["https is not supported towards a replica"]),
        ("url: ftp://a:1", ["ftp:// is not supported"]),
        ("url: 'a:1'", ["write http:// before it: http://a:1"]),
        ("url: http://a", ["has no port"]),
        ("url: 'http://:1'", ["has no host"]),
        ("url: http://a:1/api", ["has a path"]),
        ("url: http://a:1?x", ["has a query"]),
        ("url: 'http://a:1#x'", ["has a fragment"]),
        ("url: http://u:p@a:1", ["user name or password"]),
        ("url: http://a:0", ["port 0"]),
        ("url: http://a:65536", ["port 65536 does not exist"]),
        ("url: http://a:1x", ["is not host:port"]),
        ("url: 'http://::1:80'", ["needs brackets"]),
        ("url: 'http://[1.2.3.4]:80'", ["brackets are for IPv6"]),
        ("url: 'http://[zz]:80'", ["is not an IPv6 address"]),
        ("url: http://1.2.3:80", ["is not a host name or an IP address"]),
        ("url: http://a b:80", ["is not a host name"]),
        ("url: http://gpü:80", ["xn--"]),
        ("url: http://-a:80", ["is not a host name"]),
        (f"url: http://{'a' * 5_000}!:80", ["is not a host name"]),
    ],
)
def test_a_wrong_value_of_a_replica_is_refused_and_explained(replica: str, wanted: list[str]) -> None:
    fields = {"id": "a", "url": "http://b:1"}
    key = replica.partition(":")[0]
    fields.pop(key, None)
    rest = "".join(f"\n    {name}: {value}" for name, value in fields.items())
    message = refused(f"replicas:\n  - {replica}{rest}\n")
    assert message.startswith(f"corral.yaml:2:{5 + len(key) + 2}: replicas[0].{key}: ")
    for part in wanted:
        assert part in message


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("listen: 11434", "expected host:port, found 11434; write 127.0.0.1:11434"),
        ("listen: ':11434'", "has no host"),
        ("listen: localhost", "has no port"),
        ("listen: http://127.0.0.1:11434", "write host:port without http://"),
        ("listen: 127.0.0.1:99999", "port 99999 does not exist"),
        ("queue: {max_requests: 0}", "queue.max_requests: expected a whole number >= 1, found 0"),
        ("queue: {max_wait_s: 5m}", "queue.max_wait_s: expected a number, found 5m; write a plain number"),
        ("queue: {order: sjf}", "queue.order: expected one of fcfs, wspt, found sjf"),
        ("placement: {enabled: 1}", "placement.enabled: expected true or false, found 1"),
        ("placement: {canonicalise: {num_ctx: 3}}", "placement.canonicalise.num_ctx: expected a whole number >= 4"),
        ("placement: {canonicalise: {num_ctx: big}}", "expected a whole number, or one for each model, found big"),
        ("placement: {canonicalise: {num_ctx: [4]}}", "expected a whole number, or one for each model, found a list"),
        ("placement: {canonicalise: {num_ctx: {m: x}}}", "canonicalise.num_ctx.m: expected a whole number, found x"),
        (
            "placement: {canonicalise: {num_ctx: {m: 4, 'M:latest': 5}}}",
            "canonicalise.num_ctx.M:latest: m:latest is given twice, as m and M:latest",
        ),
        ("timeouts: {drain_s: -1}", ">= 0.0, found -1"),
        ("timeouts: {connect_s: 90000}", "<= 86400.0"),
        ("probes: {ollama_interval_s: 0}", ">= 0.05, found 0"),
        ("limits: {max_head_bytes: 1}", ">= 1024, found 1"),
        ("limits: {max_body_bytes: 64MiB}", "found 64MiB; write a plain number"),
        ("origins: [foo]", "origins[0]: expected an origin"),
        ("origins: https://a", "expected a list"),
        ("hosts: ['a:1']", "hosts[0]: expected a host name or IP address without a port, found 'a:1'"),
        ("policy: round-robin", "policy: expected keys and values, for instance {name: round-robin}"),
        ("policy: {path: ./mine.py}", "policy.name: is missing: which class of the file is the policy?"),
        ("policy: {name: ''}", "policy.name: "),
        ("policy: {name: x, when: 2024-13-45}", "policy.when: cannot be read as timestamp"),
    ],
)
def test_a_wrong_value_elsewhere_is_refused_and_explained(text: str, wanted: str) -> None:
    message = refused(LEAST + text + "\n")
    assert message.startswith("corral.yaml:3:")
    assert wanted in message


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ('  - {id: a, url: "http://127.0.0.1:21002"}\n', "replicas[1].id: 'a' is already the id of replicas[0]"),
        ('  - {id: b, url: "http://127.0.0.1:21001"}\n', "is already replicas[0] ('a'); one Ollama is one replica"),
        ('  - {id: b, url: "http://LOCALHOST:21001/"}\n', "is already replicas[0]"),
        ("listen: 127.0.0.1:21001\n", "is the gateway's own listen (127.0.0.1:21001)"),
        ("listen: 0.0.0.0:21001\n", "requests would go round in a loop"),
        ("admin_listen: localhost:21001\n", "is the gateway's own admin_listen"),
        ("listen: 127.0.0.1:5\nadmin_listen: 127.0.0.1:5\n", "is taken by listen"),
        ("listen: 0.0.0.0:5\nadmin_listen: 127.0.0.1:5\n", "is taken by listen"),
        (f"{SECOND}, pin: [A, b], keep_off: ['a:latest']}}\n", "replicas[1].pin: A is also in keep_off; remove it"),
        (f"{SECOND}, models: [a], pin: [a, b]}}\n", "replicas[1].pin: b is not one of its models, so nobody would"),
        (f"{SECOND}, pin: ['']}}\n", "replicas[1].pin[0]: expected text of length >= 1"),
        (f"{SECOND}, pin: [a, b], max_loaded: 1}}\n", "3:69: replicas[1].max_loaded: 1 is too little for the 2 models"),
    ],
)
def test_what_two_keys_together_make_wrong_is_refused(more: str, wanted: str) -> None:
    assert wanted in refused(LEAST + more)


def test_two_free_ports_are_not_the_same_port() -> None:
    config = parse_config(LEAST + "listen: 127.0.0.1:0\nadmin_listen: 127.0.0.1:0\n", "x")
    assert config.listen.port == 0


def test_all_mistakes_of_a_file_are_told_at_once_in_the_order_of_its_lines() -> None:
    message = refused('replicas:\n - {id: 1, url: "http://a:1", slot: 2}\nqueue: {max_wait_s: soon}\nlistne: x\n')
    lines = message.splitlines()
    assert lines[0] == "corral.yaml: 4 problems"
    assert [line.split(":")[1] for line in lines[1:]] == ["2", "2", "3", "4"]


def test_aliases_that_multiply_are_refused_before_they_fill_memory() -> None:
    text = "a: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    text += "".join(f"b{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
    assert "more than 100000 values" in refused(text)


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: path.write_bytes(b"\x7fELF\0\0"), "is a binary file, not YAML text"),
        (lambda path: path.write_bytes(b"a: 1\nb: \xff\n"), "corral.yaml:2: is not UTF-8 (byte 0xff)"),
        (lambda path: path.write_bytes(b"# " + b"x" * (1 << 20)), "is larger than 1048576 bytes"),
        (lambda path: path.symlink_to("/dev/zero"), "is larger than 1048576 bytes"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, make: Callable[[Path], object], wanted: str) -> None:
    path = tmp_path / "corral.yaml"
    make(path)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    assert wanted in str(caught.value)


def test_a_pipe_is_read_to_its_end_and_not_waited_for_when_nobody_writes_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("corral.gateway.config.load.PIPE_S", 0.2)
    path = tmp_path / "corral.yaml"
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="cannot be read: a pipe that did not end within"):
        load_config(path)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_NONBLOCK), "wb") as writer:
        writer.write(LEAST.encode())
        writer.flush()
        with pytest.raises(ConfigError, match="a pipe that did not end within"):
            load_config(path)
    monkeypatch.setattr("corral.gateway.config.load.PIPE_S", 10.0)
    writing = threading.Thread(target=path.write_text, args=[LEAST])
    writing.start()
    assert load_config(path).replicas[0].id == "a"
    writing.join()


@pytest.mark.parametrize("key", ["state_dir: {}", "access_log: {{path: {}}}", "policy: {{name: Mine, path: {}}}"])
def test_a_path_that_can_be_none_is_named_with_its_place(key: str) -> None:
    assert "corral.yaml:3:" in (said := refused(LEAST + key.format("~nobody-of-this-name/x")))
    assert "there is no such home folder; write the whole path" in said
    assert "a path has no zero byte in it" in refused(LEAST + key.format('"/a\\0b"'))


def test_a_mistake_is_told_without_the_password_in_it() -> None:
    said = refused(LEAST + "tracing: {endpoint: 'http://me:hush@collector:4318'}\n")
    assert "found 'http://***@collector:4318'" in said


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "corral.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + LEAST.replace("\n", "\r\n").encode())
    assert load_config(path).replicas[0].id == "a"


def test_a_policy_file_is_sought_beside_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "corral.yaml"
    (tmp_path / "mine.py").write_text("class Mine:\n    def choose(self, request, candidates, rng): ...\n")
    path.write_text(LEAST + "policy: {path: mine.py, name: Mine}\n")
    assert load_config(path).policy.path == tmp_path / "mine.py"


def test_what_is_wrong_with_the_policy_comes_with_everything_else(tmp_path: Path) -> None:
    path = tmp_path / "corral.yaml"
    path.write_text(LEAST + "policy:\n  cold_penalti: 3\n  cold_penalty: much\nqueue: {max_request: 3}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    said = str(caught.value).splitlines()
    assert said[0] == f"{path}: 3 problems"
    assert said[1].startswith(
        f"  {path}:4:3: policy.cold_penalti: weighted-least-load has no such option; did you mean"
    )
    assert said[2] == (
        f"  {path}:5:17: policy.cold_penalty: expected a number, found much; "
        "write a plain number without unit or quotes (the key's name says the unit)"
    )
    assert said[3].startswith(f"  {path}:6:9: queue.max_request: unknown key")


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("\nx = nowhere\n", "mine.py:2: NameError"),
        ("raise SystemExit\n", "mine.py:1: SystemExit"),
        (None, "cannot read"),
    ],
)
def test_a_policy_file_that_cannot_be_run_is_refused_where_it_is_named(
    source: str | None, wanted: str, tmp_path: Path
) -> None:
    path = tmp_path / "corral.yaml"
    path.write_text(LEAST + "policy: {path: mine.py, name: Mine}\n")
    if source is not None:
        (tmp_path / "mine.py").write_text(source)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}:3:16: policy.path: ")
    assert wanted in str(caught.value)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("queue: {max_requests: 010}", "queue.max_requests: YAML reads 010 as 8; write a plain number"),
        ("queue: {max_wait_s: 1:30}", "queue.max_wait_s: YAML reads 1:30 as 90; write a plain number"),
        ("policy: {cold_penalty: 010}", "policy.cold_penalty: YAML reads 010 as 8"),
        ("queue: !!python/object:os.popen {max_requests: 3}", "the tag !!python/object:os.popen has no meaning here"),
        ("hosts: !secret [a]", "the tag !secret has no meaning here; remove it"),
        ("policy:", "policy: expected keys and values, for instance {name: round-robin}, found nothing"),
    ],
)
def test_what_yaml_would_read_as_something_else_is_refused(text: str, wanted: str) -> None:
    message = refused(LEAST + text + "\n")
    assert message.startswith("corral.yaml:3:")
    assert wanted in message


@pytest.mark.parametrize("id", [".", "..", '"a\\n"'])
def test_an_id_that_would_not_survive_in_a_path_or_a_header_is_refused(id: str) -> None:
    message = refused(LEAST.replace("id: a", f"id: {id}"))
    assert "replicas[0].id: expected up to 64 letters, digits, dots, dashes and underscores, other than" in message


_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
_values = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["replicas", "id", "url", "listen", "queue", "policy", "name", "path", "<<", "slots"])
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(_values)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_whatever_yaml_says_the_answer_is_a_config_or_a_config_error(value: object) -> None:
    _config_or_config_error(yaml.safe_dump(value, allow_unicode=True))


@given(st.text(alphabet=st.sampled_from("replicasduh: -\n\t{}[]&*!<>'\"#|%@`?,.01\\~"), max_size=60))
@settings(max_examples=400, deadline=None, derandomize=True)
def test_whatever_the_text_is_the_answer_is_a_config_or_a_config_error(text: str) -> None:
    _config_or_config_error(text)
    _config_or_config_error(LEAST + text)


def _config_or_config_error(text: str) -> None:
    try:
        said: Config | str = parse_config(text, "corral.yaml")
    except ConfigError as error:
        said = str(error)
    assert isinstance(said, Config) or said.startswith("corral.yaml")


def test_gpus_are_an_index_a_uuid_a_list_of_them_or_keys() -> None:
    config = parse_config(
        "gpus: [0, GPU-ab, [1, 2], {gpus: [MIG-c, 3], models: [big], id: pair, slots: 2, split: row, "
        "env: {A: 1, B: yes}}]",
        "c.yaml",
    )
    assert config.gpus is not None
    assert [group.gpus for group in config.gpus.groups] == [("0",), ("GPU-ab",), ("1", "2"), ("MIG-c", "3")]
    last = config.gpus.groups[-1]
    assert (last.models, last.id, last.slots, last.split, last.env) == (
        ("big",),
        "pair",
        2,
        "row",
        {"A": "1", "B": "1"},
    )


@pytest.mark.parametrize(
    ("text", "owns"),
    [
        ("listen: 127.0.0.1:1\n", True),
        ("gpus: auto\n", True),
        ("gpus: auto\n" + LEAST, True),
        ("gpus: none\n" + LEAST, False),
        (LEAST, False),
    ],
)
def test_corral_runs_ollamas_of_its_own_unless_replicas_are_listed(text: str, owns: bool) -> None:
    assert parse_config(text, "c.yaml").owns_replicas is owns


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("gpus: all\n", "gpus: expected auto, none or a list of GPUs, found all"),
        ("gpus: none\n", "gpus: names no GPU, and there are no replicas: nothing would serve"),
        ("gpus: [first]\n", "gpus[0]: expected a GPU's index or its UUID (GPU-… or MIG-…), found first"),
        ("gpus: [[]]\n", "gpus[0]: is empty; name at least one GPU"),
        ("gpus: [0, [1, 0]]\n", "gpus[1]: GPU 0 is already in gpus[0]"),
        ("gpus: [{gpus: [0], modles: [a]}]\n", "gpus[0].modles: unknown key; did you mean 'models'?"),
        ("gpus: [{models: [a]}]\n", "gpus[0].gpus: is missing"),
        ("gpus: [{gpus: [0], id: x}, {gpus: [1], id: x}]\n", "gpus[1].id: 'x' is already the id of gpus[0]"),
        ("gpus: [0]\nlarge_models: [big]\n", "large_models: needs gpus: auto"),
        ("ollama: {env: {OLLAMA_HOST: x}}\n", "corral.yaml:1:9: ollama.env.OLLAMA_HOST: Corral gives every replica"),
        ("gpus: [0, {gpus: [1], env: {OLLAMA_HOST: x}}]\n", "corral.yaml:1:11: gpus[1].env.OLLAMA_HOST: Corral gives"),
        ("gpus: [{gpus: [0], pin: [a], keep_off: [a]}]\n", "corral.yaml:1:25: gpus[0].pin: a is also in keep_off"),
        ("gpus: [{gpus: [0], models: [a], pin: [b]}]\n", "gpus[0].pin: b is not one of its models"),
        (
            "gpus: [{gpus: [0], pin: [a, b]}]\nollama: {max_loaded: 1}\n",
            "gpus[0].max_loaded: 1 is too little for the 2",
        ),
        ("gpus: [{gpus: [0], split: diagonal}]\n", "gpus[0].split: expected one of layer, row, tensor, found diagonal"),
        ("ollama: {env: {a-b: 1}}\n", "ollama.env.a-b: expected the name of an environment variable, found 'a-b'"),
        ("ollama: {env: {A: [1]}}\n", "ollama.env.A: expected text or a number"),
        ("ollama: {env: [A]}\n", "ollama.env: expected names and values (NAME: value), found a list"),
        ("ollama: {keep_alive: forever}\n", "ollama.keep_alive: expected a duration as Ollama writes it"),
        ("ollama: {bind_numa: 1}\n", "ollama.bind_numa: expected true or false, found 1"),
        ("state_dir: 5\n", "state_dir: expected text, found 5"),
        ("warmup: {seconds: -1}\n", "warmup.seconds: expected a number >= 0"),
    ],
)
def test_a_mistake_about_owned_replicas_is_named_with_its_place(text: str, wanted: str) -> None:
    assert wanted in refused(text)


def test_paths_begin_at_the_folder_of_the_file() -> None:
    config = parse_config("state_dir: state\nollama: {models: /srv/models}\n", "/etc/corral/c.yaml")
    assert (config.state_dir, config.ollama.models) == (Path("/etc/corral/state"), Path("/srv/models"))

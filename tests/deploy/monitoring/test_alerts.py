"""Each alert is raised by what it is for, and by nothing else; judged by Prometheus' own tool."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from corral.gateway.cli.table import COMMANDS
from tests.deploy.monitoring.files import PROMETHEUS, RULES, needs_prometheus, rules

pytestmark = needs_prometheus

T = 'job="corral",instance="box",pod="corral-0"'
"""The last one is what a cluster adds to each series; a sum by job and instance does not have it."""
WELL = {
    f"up{{{T}}}": "1+0x240",
    f"corral_ready{{{T}}}": "1+0x240",
    f'corral_replica_health{{{T},replica="a",health="up"}}': "1+0x240",
    f'corral_replica_health{{{T},replica="a",health="down"}}': "0+0x240",
    f'corral_replica_health{{{T},replica="a",health="ejected"}}': "0+0x240",
    f'corral_replica_enabled{{{T},replica="a"}}': "1+0x240",
    f'corral_replica_held{{{T},replica="a"}}': "0+0x240",
    f'corral_replica_slots{{{T},replica="a"}}': "4+0x240",
    f'corral_replica_sample_age_seconds{{{T},replica="a"}}': "1+0x240",
    f'corral_replica_process_state{{{T},replica="a",state="failed"}}': "0+0x240",
    f'corral_replica_restarts_total{{{T},replica="a"}}': "1+0x240",
    f'corral_gpu_condition{{{T},gpu="0",condition="ok"}}': "1+0x240",
    f'corral_gpu_condition{{{T},gpu="0",condition="lost"}}': "0+0x240",
    f'corral_gpu_temperature_celsius{{{T},gpu="0"}}': "61+0x240",
    f'corral_gpu_slowdown_celsius{{{T},gpu="0"}}': "88+0x240",
    f'corral_gpu_throttled{{{T},gpu="0",reason="power cap"}}': "1+0x240",
    f'corral_gpu_xids_total{{{T},gpu="0"}}': "0+0x240",
    f'corral_gpu_uncorrected_ecc_errors_total{{{T},gpu="0"}}': "0+0x240",
    f"corral_requests_queued{{{T}}}": "3+0x240",
    f"corral_queue_oldest_seconds{{{T}}}": "2+0x240",
    f'corral_requests_total{{{T},kind="chat",model="m",outcome="ok"}}': "0+600x240",
    f'corral_refusals_total{{{T},reason="queue_full"}}': "0+0x240",
    f"corral_broken_streams_total{{{T}}}": "0+0x240",
    f'corral_retries_total{{{T},fault="stale"}}': "0+300x240",
    f'corral_probes_total{{{T},replica="a",part="version"}}': "0+60x240",
    f'corral_probe_seconds_total{{{T},replica="a",part="version"}}': "0+0.1x240",
    f'corral_event_loop_lag_seconds_bucket{{{T},le="0.001"}}': "0+1200x240",
    f'corral_event_loop_lag_seconds_bucket{{{T},le="1.0"}}': "0+1200x240",
    f'corral_event_loop_lag_seconds_bucket{{{T},le="+Inf"}}': "0+1200x240",
    f"process_open_fds{{{T}}}": "100+0x240",
    f"process_max_fds{{{T}}}": "1024+0x240",
    f'corral_config_reloads_total{{{T},result="refused"}}': "0+0x240",
    f'corral_model_loads_total{{{T},replica="a",model="m",outcome="ok"}}': "0+1x240",
    f'corral_model_unloads_total{{{T},replica="a",model="m",outcome="ok"}}': "0+1x240",
    f'corral_predicted_error_seconds_total{{{T},replica="a",part="end"}}': "0+6x240",
    f'corral_predicted_actual_seconds_total{{{T},replica="a",part="end"}}': "0+60x240",
    f'corral_time_to_first_token_seconds_bucket{{{T},model="m",class="interactive",le="1.0"}}': "0+600x240",
    f'corral_time_to_first_token_seconds_bucket{{{T},model="m",class="interactive",le="60.0"}}': "0+600x240",
    f'corral_time_to_first_token_seconds_bucket{{{T},model="m",class="interactive",le="+Inf"}}': "0+600x240",
}
"""A value a minute, for four hours, of a box on which all is well."""


@dataclass(frozen=True)
class Trouble:
    """What is different from a box on which all is well, when it is looked at, and which alerts that raises."""

    alert: str
    series: dict[str, str]
    at: str = "20m"
    with_it: tuple[str, ...] = field(default=())


TROUBLES = (
    Trouble("CorralGatewayDown", {f"up{{{T}}}": "0+0x240"}),
    Trouble("CorralNotReady", {f"corral_ready{{{T}}}": "0+0x240"}),
    Trouble(
        "CorralEventLoopLag",
        {f'corral_event_loop_lag_seconds_bucket{{{T},le="0.001"}}': "0+1000x240"},
    ),
    Trouble("CorralFileDescriptors", {f"process_open_fds{{{T}}}": "900+0x240"}),
    Trouble("CorralConfigRefused", {f'corral_config_reloads_total{{{T},result="refused"}}': "0+0x10 1+0x230"}),
    Trouble("CorralReplicaDown", {f'corral_replica_health{{{T},replica="a",health="down"}}': "1+0x240"}),
    Trouble("CorralReplicaEjected", {f'corral_replica_health{{{T},replica="a",health="ejected"}}': "1+0x240"}),
    Trouble("CorralReplicaNotReady", {f'corral_replica_held{{{T},replica="a"}}': "1+0x240"}),
    Trouble("CorralReplicaGivenUp", {f'corral_replica_process_state{{{T},replica="a",state="failed"}}': "1+0x240"}),
    Trouble("CorralReplicaRestarts", {f'corral_replica_restarts_total{{{T},replica="a"}}': "1+1x240"}),
    Trouble("CorralReplicaDrained", {f'corral_replica_enabled{{{T},replica="a"}}': "0+0x240"}, at="61m"),
    Trouble("CorralProbeStale", {f'corral_replica_sample_age_seconds{{{T},replica="a"}}': "90+60x240"}),
    Trouble("CorralProbeSlow", {f'corral_probe_seconds_total{{{T},replica="a",part="version"}}': "0+30x240"}),
    Trouble("CorralGpuLost", {f'corral_gpu_condition{{{T},gpu="0",condition="lost"}}': "1+0x240"}, at="0m"),
    Trouble("CorralGpuHung", {f'corral_gpu_condition{{{T},gpu="0",condition="hung"}}': "1+0x240"}),
    Trouble("CorralGpuUnread", {f'corral_gpu_condition{{{T},gpu="0",condition="stale"}}': "1+0x240"}),
    Trouble("CorralGpuHot", {f'corral_gpu_temperature_celsius{{{T},gpu="0"}}': "84+0x240"}),
    Trouble(
        "CorralGpuThrottling",
        {f'corral_gpu_throttled{{{T},gpu="0",reason="hardware thermal slowdown"}}': "1+0x240"},
    ),
    Trouble("CorralGpuXid", {f'corral_gpu_xids_total{{{T},gpu="0"}}': "0+0x10 1+0x230"}),
    Trouble("CorralGpuMemoryErrors", {f'corral_gpu_uncorrected_ecc_errors_total{{{T},gpu="0"}}': "0+0x10 1+0x230"}),
    Trouble("CorralQueueOld", {f"corral_queue_oldest_seconds{{{T}}}": "65+0x240"}),
    Trouble("CorralQueueLong", {f"corral_requests_queued{{{T}}}": "21+0x240"}),
    Trouble("CorralRefusing", {f'corral_refusals_total{{{T},reason="queue_full"}}': "0+6x240"}),
    Trouble("CorralBrokenStreams", {f"corral_broken_streams_total{{{T}}}": "0+10x240"}),
    Trouble("CorralErrors", {f'corral_requests_total{{{T},kind="chat",model="m",outcome="error_5xx"}}': "0+60x240"}),
    Trouble("CorralRetries", {f'corral_retries_total{{{T},fault="reset"}}': "0+90x240"}),
    Trouble(
        "CorralSlowFirstToken",
        {f'corral_time_to_first_token_seconds_bucket{{{T},model="m",class="interactive",le="1.0"}}': "0+300x240"},
    ),
    Trouble(
        "CorralModelLoadsFail",
        {f'corral_model_loads_total{{{T},replica="a",model="m",outcome="failed"}}': "0+1x240"},
    ),
    Trouble(
        "CorralModelsSwap",
        {f'corral_model_unloads_total{{{T},replica="a",model="m",outcome="ok"}}': "0+5x240"},
        at="40m",
    ),
    Trouble(
        "CorralPredictionsOff",
        {f'corral_predicted_error_seconds_total{{{T},replica="a",part="end"}}': "0+120x240"},
        at="60m",
    ),
)
ALMOST = (
    Trouble(
        "",
        {
            f'corral_replica_health{{{T},replica="a",health="down"}}': "1+0x240",
            f'corral_replica_enabled{{{T},replica="a"}}': "0+0x240",
        },
    ),
    Trouble(
        "",
        {
            f'corral_replica_health{{{T},replica="a",health="down"}}': "1+0x240",
            f'corral_replica_held{{{T},replica="a"}}': "1+0x240",
        },
        at="10m",
    ),
    Trouble("", {f'corral_refusals_total{{{T},reason="stopping"}}': "0+600x240"}),
    Trouble("", {f"corral_requests_queued{{{T}}}": "19+0x240"}),
    Trouble("", {f"corral_broken_streams_total{{{T}}}": "0+1x240"}),
    Trouble(
        "",
        {
            f'corral_gpu_slowdown_celsius{{{T},gpu="0"}}': "",
            f'corral_gpu_temperature_celsius{{{T},gpu="0"}}': "99+0x240",
        },
    ),
    Trouble("", {f"corral_queue_oldest_seconds{{{T}}}": "65+0x5 2+0x235"}),
)
"""Drained or held, and therefore down; stopping; almost too many; no known limit; over."""


def test_all_alerts_are_tried() -> None:
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    assert {trouble.alert for trouble in TROUBLES} == alerts


def test_what_is_to_be_done_names_commands_that_there_are() -> None:
    said = " ".join(rule["annotations"]["runbook"] for rule in rules() if "alert" in rule)
    named = set(re.findall(r"`corral ([a-z-]+)", said))
    assert "reload" in named
    assert named <= {*COMMANDS}


def test_each_alert_is_raised_by_its_trouble_and_alone(tmp_path: Path) -> None:
    well = [Trouble("", {}, at) for at in ("0m", "5m", "61m", "3h")]
    problems = judged(tmp_path, [*well, *ALMOST, *TROUBLES])
    assert problems == "", problems


def test_a_trouble_that_is_over_raises_nothing(tmp_path: Path) -> None:
    """And the judge can say no: what is expected wrongly is found."""
    assert "CorralNotReady" in judged(tmp_path, [Trouble("CorralNotReady", {})])


def test_what_an_alert_says_names_what_it_is_about(tmp_path: Path) -> None:
    test = {
        "interval": "1m",
        "input_series": series(
            {
                f'corral_replica_health{{{T},replica="gpu7",health="down"}}': "1+0x240",
                f'corral_replica_enabled{{{T},replica="gpu7"}}': "1+0x240",
            }
        ),
        "alert_rule_test": [
            {
                "eval_time": "20m",
                "alertname": "CorralReplicaDown",
                "exp_alerts": [
                    {
                        "exp_labels": {
                            "job": "corral",
                            "instance": "box",
                            "pod": "corral-0",
                            "replica": "gpu7",
                            "health": "down",
                            "severity": "warning",
                        },
                        "exp_annotations": next(rule for rule in rules() if rule.get("alert") == "CorralReplicaDown")[
                            "annotations"
                        ]
                        | {"summary": "Replica gpu7 is down."},
                    }
                ],
            }
        ],
    }
    assert run(tmp_path, [test]) == ""


def test_joules_per_token_are_only_of_gpus_that_are_metered_and_not_shared(tmp_path: Path) -> None:
    names = {"alone": ("0",), "pair": ("1", "2"), "half": ("3", "4"), "left": ("5",), "right": ("5",)}
    given = {}
    for replica, gpus in names.items():
        given[f'corral_replica_output_tokens_total{{{T},replica="{replica}"}}'] = "0+600x60"
        given |= {f'corral_replica_gpu_info{{{T},replica="{replica}",gpu="{gpu}"}}': "1+0x60" for gpu in gpus}
    given |= {f'corral_gpu_energy_joules_total{{{T},gpu="{gpu}"}}': "0+6000x60" for gpu in "01235"}
    test = {
        "interval": "1m",
        "input_series": series(given),
        "promql_expr_test": [
            {
                "expr": "sum by (replica) (instance_replica:corral_output_token_joules:ratio5m)",
                "eval_time": "20m",
                "exp_samples": [
                    {"labels": '{replica="alone"}', "value": 10},
                    {"labels": '{replica="pair"}', "value": 20},
                ],
            }
        ],
    }
    assert run(tmp_path, [test]) == ""


def judged(folder: Path, troubles: list[Trouble]) -> str:
    """What Prometheus' tool finds wrong; nothing: exactly the expected alerts were raised."""
    return run(folder, [case(trouble) for trouble in troubles])


def case(trouble: Trouble) -> dict[str, object]:
    expected = [trouble.alert, *trouble.with_it] if trouble.alert else []
    return {
        "name": trouble.alert or "nothing",
        "interval": "1m",
        "input_series": series(WELL | trouble.series),
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": trouble.at,
                "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(expected)],
            }
        ],
    }


def series(values: dict[str, str]) -> list[dict[str, str]]:
    return [{"series": name, "values": given} for name, given in values.items() if given]


def run(folder: Path, tests: Sequence[Mapping[str, object]]) -> str:
    file = folder / "tests.yml"
    document = {"rule_files": [str(path) for path in RULES], "evaluation_interval": "1m", "tests": [*tests]}
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, timeout=60)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_the_configuration_and_its_rules_are_valid() -> None:
    command = ["promtool", "check", "config", str(PROMETHEUS / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    for path in RULES:
        assert f"{path}\n  SUCCESS" in done.stdout

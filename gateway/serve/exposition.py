"""Every metric of ``/metrics`` by name: what it means, and by what it is told apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric as a reader of the page sees it."""

    type: str
    labels: tuple[str, ...]
    help: str


def _counter(help: str, *labels: str) -> MetricSpec:
    return MetricSpec("counter", labels, help)


def _gauge(help: str, *labels: str) -> MetricSpec:
    return MetricSpec("gauge", labels, help)


def _histogram(help: str, *labels: str) -> MetricSpec:
    return MetricSpec("histogram", labels, help)


_BY: Final = ("model", "class")

METRICS: Final[dict[str, MetricSpec]] = {
    "corral_build_info": _gauge("Always 1; the labels say what runs.", "version", "python"),
    "corral_policy_info": _gauge("Always 1; the label names the policy that decides.", "policy"),
    "corral_ready": _gauge("1 while a replica can serve and the gateway does not stop, else 0."),
    "corral_requests_total": _counter("Finished requests.", "kind", "model", "outcome"),
    "corral_class_requests_total": _counter("Finished requests, by class.", *_BY, "outcome"),
    "corral_streamed_lines_total": _counter("Lines or events of streamed answers.", "kind", "model"),
    "corral_queue_seconds": _histogram("Time from arrival until a slot was free or the request ended.", *_BY, "result"),
    "corral_time_to_first_token_seconds": _histogram(
        "Time from arrival to the first byte of a streamed answer of tokens.", *_BY
    ),
    "corral_time_per_output_token_seconds": _histogram("Time between two tokens of an answer, on average.", *_BY),
    "corral_request_seconds": _histogram("Time from arrival to the end of the answer.", *_BY, "result"),
    "corral_prompt_tokens_total": _counter("Prompt tokens, as the replicas reported them.", *_BY),
    "corral_output_tokens_total": _counter("Generated tokens, as the replicas reported them.", *_BY),
    "corral_retries_total": _counter("Attempts that failed before the first byte, by what went wrong.", "fault"),
    "corral_refusals_total": _counter("Requests the gateway refused itself, by reason.", "reason"),
    "corral_broken_streams_total": _counter("Answers that broke after their first byte; the client was told."),
    "corral_clients_gone_total": _counter("Requests whose client left before the end of the answer."),
    "corral_decisions_total": _counter("Choices of a replica, by the policy's reason.", "replica", "reason"),
    "corral_requests_in_flight": _gauge("Requests that are with a replica now."),
    "corral_requests_queued": _gauge("Requests that wait for a free slot now."),
    "corral_queue_oldest_seconds": _gauge("How long the oldest waiting request has waited; absent when none waits."),
    "corral_model_queued": _gauge("Requests that wait for this model now.", "model"),
    "corral_model_queue_oldest_seconds": _gauge(
        "How long the oldest request for this model has waited; absent when none does.", "model"
    ),
    "corral_model_in_flight": _gauge("Requests for this model that are with a replica now.", "model"),
    "corral_model_slots": _gauge("Requests for this model that the replicas which hold it run at a time.", "model"),
    "corral_model_copies": _gauge("Replicas that hold this installed model in memory.", "model"),
    "corral_model_loads_total": _counter("Loads of a model that the gateway asked for.", "replica", "model", "outcome"),
    "corral_model_load_seconds": _histogram("How long loads of a model took that went well.", "replica"),
    "corral_model_unloads_total": _counter(
        "Evictions: models that the gateway had let go of to make room; failed: it stayed.",
        "replica",
        "model",
        "outcome",
    ),
    "corral_replica_up": _gauge("1: healthy. 0: down, or taken out for failing. Absent until known.", "replica"),
    "corral_replica_health": _gauge("1 for the health that the replica is in, 0 for the others.", "replica", "health"),
    "corral_replica_enabled": _gauge("0 while the operator drains the replica, else 1.", "replica"),
    "corral_replica_held": _gauge("1 while the replica's process is not ready for requests, else 0.", "replica"),
    "corral_replica_in_flight": _gauge("Requests that are with this replica now.", "replica"),
    "corral_replica_slots": _gauge("Requests the replica runs at a time per model; absent until known.", "replica"),
    "corral_replica_weight": _gauge("The weight it was given in the configuration.", "replica"),
    "corral_replica_sample_age_seconds": _gauge("Age of its last reading; absent until there is one.", "replica"),
    "corral_replica_model_loaded": _gauge("1 for each model in its memory.", "replica", "model"),
    "corral_replica_gpu_info": _gauge("Always 1, for each GPU that the replica runs on.", "replica", "gpu"),
    "corral_replica_requests_total": _counter("Finished requests that a replica answered.", "replica", "outcome"),
    "corral_replica_prompt_tokens_total": _counter("Prompt tokens, as the replica reported them.", "replica"),
    "corral_replica_output_tokens_total": _counter("Generated tokens, as the replica reported them.", "replica"),
    "corral_replica_attempts_failed_total": _counter(
        "Attempts on the replica that failed, by what went wrong, of finished requests.", "replica", "fault"
    ),
    "corral_replica_health_changes_total": _counter(
        "Changes of health, by the health it changed to.", "replica", "health"
    ),
    "corral_replica_process_state": _gauge(
        "1 for the state that the process of the replica is in, 0 for the others.", "replica", "state"
    ),
    "corral_replica_restarts_total": _counter("Starts of the replica's process after the first.", "replica"),
    "corral_predicted_seconds_total": _counter(
        "What answered requests were predicted to take from their sending on, added up.", "replica", "part"
    ),
    "corral_predicted_actual_seconds_total": _counter(
        "What those requests took that were predicted and answered, added up.", "replica", "part"
    ),
    "corral_predicted_error_seconds_total": _counter(
        "By how much requests differed from what was predicted of them, added up without the sign.", "replica", "part"
    ),
    "corral_predicted_ratio": _histogram(
        "What a request took, divided by what was predicted; below 1: it was quicker.", "replica", "part"
    ),
    "corral_gpu_info": _gauge("Always 1; the labels say what is called by the number.", "gpu", "uuid", "name"),
    "corral_gpu_up": _gauge("1: its readings are fresh. 0: stale, hung, failed or lost.", "gpu"),
    "corral_gpu_condition": _gauge("1 for the condition that the GPU is in, 0 for the others.", "gpu", "condition"),
    "corral_gpu_utilisation_ratio": _gauge("Share of the last moments in which anything ran on it.", "gpu"),
    "corral_gpu_memory_used_bytes": _gauge("Memory in use, without what the driver keeps for itself.", "gpu"),
    "corral_gpu_memory_total_bytes": _gauge("All of its memory.", "gpu"),
    "corral_gpu_temperature_celsius": _gauge("Its temperature.", "gpu"),
    "corral_gpu_slowdown_celsius": _gauge("The temperature at which it slows itself down.", "gpu"),
    "corral_gpu_power_watts": _gauge("What it draws.", "gpu"),
    "corral_gpu_power_limit_watts": _gauge("The most it may draw.", "gpu"),
    "corral_gpu_energy_joules_total": _counter("What it drew since its driver was loaded.", "gpu"),
    "corral_gpu_sm_clock_hertz": _gauge("The clock of its processors.", "gpu"),
    "corral_gpu_throttled": _gauge("1 for each reason for which it runs slower than it could.", "gpu", "reason"),
    "corral_gpu_uncorrected_ecc_errors_total": _counter("Memory errors it could not correct.", "gpu"),
    "corral_gpu_xids_total": _counter("Errors its driver reported since the gateway's start.", "gpu"),
    "corral_gpu_sample_age_seconds": _gauge("Age of its last reading; absent until there is one.", "gpu"),
    "corral_gpu_probe_rounds_total": _counter("Readings of all GPUs."),
    "corral_gpu_probe_seconds_total": _counter("Time spent reading the GPUs, off the event loop."),
    "corral_probes_total": _counter("Probes sent to a replica.", "replica", "part"),
    "corral_probe_failures_total": _counter("Probes without a usable answer.", "replica", "part"),
    "corral_probe_seconds_total": _counter("Time spent waiting for answers to probes.", "replica", "part"),
    "corral_probe_success": _gauge("1: the last probe had a usable answer. 0: it had none.", "replica", "part"),
    "corral_probe_last_seconds": _gauge("How long the last probe took.", "replica", "part"),
    "corral_event_loop_lag_seconds": _histogram("How late a timer of the gateway's event loop was, 20 times a second."),
    "corral_held_open": _gauge("What the gateway holds open: tasks, connections of clients and to replicas.", "kind"),
    "corral_event_loop_lag_max_seconds": _gauge("The latest that such a timer was in about the last minute."),
    "corral_config_reloads_total": _counter("Configuration files read again, by result.", "result"),
    "ollama_gpu_utilization": _gauge("As corral_gpu_utilisation_ratio, in percent.", "gpu"),
    "ollama_gpu_memory_used": _gauge("As corral_gpu_memory_used_bytes.", "gpu"),
    "ollama_inter_gpu_latency": _gauge(
        "Seconds that a small copy from one GPU to another takes; absent where it was not measured.", "gpu", "peer"
    ),
}

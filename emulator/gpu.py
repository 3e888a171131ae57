"""How fast an emulated GPU is: pure formulas over the calibration's figures, all in seconds of the emulated machine."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from corral.emulator.catalog import MIB, GpuSpec, ModelSpec, calibration

_REFERENCE_GB = 4.92
"""Size of the 8B model whose prefill rate the table gives."""


@dataclass(frozen=True, slots=True)
class Speed:
    """One model on one GPU: rates worked out once, so that a step costs a few multiplications."""

    step_s: float
    """One decode step of one sequence at an empty context."""
    context_token_s: float
    """What one token of context adds to a step."""
    prefill_tok_s: float
    extra_s: tuple[float, ...] = field(repr=False)
    """What the n-th sequence beyond the first adds, by class."""
    slowdown: float = 1.0
    """Above 1 where layers run on the CPU."""
    fixed_tok_s: float | None = None
    """Every sequence decodes at exactly this rate instead (benchmarks)."""

    def decode_step_s(self, sequences: int, context_tokens: float) -> float:
        """Seconds of one step that gives each of ``sequences`` one token; ``context_tokens`` is their sum."""
        if self.fixed_tok_s is not None:
            return 1.0 / self.fixed_tok_s
        upto4, upto8, more = self.extra_s
        extra = sequences - 1
        if extra <= 0:
            batch_s = 0.0
        elif extra <= 3:
            batch_s = extra * upto4
        elif extra <= 7:
            batch_s = 3 * upto4 + (extra - 3) * upto8
        else:
            batch_s = 3 * upto4 + 4 * upto8 + (extra - 7) * more
        return (self.step_s + batch_s + context_tokens * self.context_token_s) * self.slowdown

    def decode_steps_s(self, steps: int, sequences: int, context_tokens: int) -> float:
        """``steps`` of these in a row, each of which adds a token to every context."""
        # a step's time is linear in its context, so together they take as long as if all had the mean context
        return steps * self.decode_step_s(sequences, context_tokens + sequences * (steps - 1) / 2)

    def decode_steps_in(self, seconds: float, sequences: int, context_tokens: int) -> int:
        """How many of these in a row end within ``seconds``: the inverse of :meth:`decode_steps_s`."""
        first = self.decode_step_s(sequences, context_tokens)
        half = (self.decode_step_s(sequences, context_tokens + sequences) - first) / 2
        linear = first - half
        steps = int(2 * seconds / (linear + math.sqrt(linear * linear + 4 * half * seconds)))
        # the root is a rounded one: the count must agree with the time that the steps are said to take
        if self.decode_steps_s(steps + 1, sequences, context_tokens) <= seconds:
            return steps + 1
        return steps - 1 if steps and self.decode_steps_s(steps, sequences, context_tokens) > seconds else steps

    def step_with_prefill_s(self, prompt_tokens: int, sequences: int, context_tokens: int) -> float:
        """A step that also works off ``prompt_tokens`` of a prompt: every decoding sequence waits for it."""
        if not prompt_tokens:
            return self.decode_step_s(sequences, context_tokens)
        prefill_s = prompt_tokens / self.prefill_tok_s * self.slowdown
        return max(prefill_s, self.decode_step_s(max(1, sequences), context_tokens))


def speed_of(gpu: GpuSpec, model: ModelSpec, gpu_ratio: float = 1.0, fixed_tok_s: float | None = None) -> Speed:
    """The speed of ``model`` with ``gpu_ratio`` of its layers on ``gpu`` (the others on the CPU)."""
    data = calibration()
    gigabytes = max(model.file_bytes / 1e9, 0.01)
    extra = data["decode"]["extra_ms_per_sequence"][gpu.batch_class]
    cpu_slowdown = data["partial_offload"]["cpu_layer_slowdown"]
    return Speed(
        step_s=gpu.step_base_s + gpu.step_s_per_gb * gigabytes,
        context_token_s=model.kv_bytes_per_token / (data["decode"]["kv_read_efficiency"] * gpu.bandwidth_bytes_s),
        prefill_tok_s=gpu.prefill_8b_tok_s * (_REFERENCE_GB / gigabytes) ** data["prefill"]["exponent"],
        extra_s=(extra["upto4"] / 1e3, extra["upto8"] / 1e3, extra["more"] / 1e3),
        slowdown=gpu_ratio + cpu_slowdown * (1.0 - gpu_ratio),
        fixed_tok_s=fixed_tok_s,
    )


def load_s(model: ModelSpec, disk_bytes_s: float | None = None) -> float:
    """From the start of the runner until it answers; ``disk_bytes_s``: None where its file is in the page cache."""
    data = calibration()["load"]
    bytes_s = data["page_cache_GBps"] * 1e9 if disk_bytes_s is None else disk_bytes_s
    return float(data["fixed_s"] + model.file_bytes / bytes_s)


def unload_s() -> float:
    return float(calibration()["load"]["unload_s"])


def recovery_s() -> float:
    """Between the end of a runner and the moment Ollama believes that its memory is free."""
    return float(calibration()["load"]["recovery_poll_s"])


def embedding_s(gpu: GpuSpec, model: ModelSpec, tokens: int) -> float:
    """One input of an embedding request."""
    return float(calibration()["embedding"]["fixed_ms"] / 1e3 + tokens / speed_of(gpu, model).prefill_tok_s)


def predicted_bytes(model: ModelSpec, context_tokens: int, slots: int) -> int:
    """What the scheduler thinks the model will take: weights and the whole key-value cache."""
    return model.file_bytes + model.kv_bytes_per_token * context_tokens * slots


def resident_bytes(model: ModelSpec, context_tokens: int, slots: int) -> int:
    """What it does take, compute buffers included."""
    return predicted_bytes(model, context_tokens, slots) + int(calibration()["vram"]["compute_buffer_MiB"]) * MIB


def reserved_bytes() -> int:
    return int(calibration()["vram"]["reserved_MiB"]) * MIB


def default_context(gpu: GpuSpec, version: tuple[int, ...]) -> int:
    """The context length Ollama picks by itself on this GPU."""
    data = calibration()["context_tiers"]
    if version < (0, 17):
        return int(data["before_tiers"])
    gib = gpu.vram_bytes / (1 << 30)
    return max(int(tokens) for least_gib, tokens in data["by_vram_GiB"] if gib >= least_gib)


def smaller_context(tokens: int) -> int | None:
    """The next tier below, tried when an automatic context does not fit."""
    tiers = [int(tier) for _, tier in calibration()["context_tiers"]["by_vram_GiB"]]
    return max((tier for tier in tiers if tier < tokens), default=None)

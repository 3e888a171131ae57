"""One reading of one NVIDIA GPU: each sensor by itself, converted to the units of a sample."""

from __future__ import annotations

from corral.model import GpuFault, GpuProcess, GpuSample, Throttle
from corral.probes.gpu import GpuReadError
from corral.probes.nvml_calls import Device
from corral.probes.nvml_survey import has_hosts_memory

SLOW_S = 30.0
"""What hardly changes (limits, thresholds, ECC counts) is read again so often."""
RELEARN_S = 300.0
"""A sensor that was not there is asked for again so often."""
GPU_SENSOR, SLOWDOWN, SM_CLOCK, UNCORRECTED, SINCE_LOAD = 0, 1, 1, 1, 0
THROTTLES = {
    0x04: Throttle.POWER_CAP,
    0x08: Throttle.HARDWARE,
    0x20: Throttle.THERMAL,
    0x40: Throttle.HARDWARE_THERMAL,
    0x80: Throttle.POWER_BRAKE,
}
"""The other reasons (idle, clocks that someone set, …) are no trouble."""


class Sensors:
    """Reads one GPU again and again."""

    def __init__(self, uuid: str, device: Device) -> None:
        self.device = device
        self._uuid = uuid
        self._has_memory = not has_hosts_memory(str(device.ask("nvmlDeviceGetName") or ""))
        self._slow_at_s: float | None = None
        self._learnt_at_s: float | None = None
        self._slowdown_celsius: int | None = None
        self._limit_mw: int | None = None
        self._max_clock_mhz: int | None = None
        self._ecc_errors: int | None = None

    def read(self, at_s: float) -> GpuSample:
        """Raises the library's errors, and :class:`GpuReadError` if no sensor at all has a value."""
        self._read_slow(at_s)
        ask = self.device.ask
        rates = ask("nvmlDeviceGetUtilizationRates")
        memory = self.device.memory() if self._has_memory else None
        if memory is not None and not memory.total:
            memory = None
        sample = GpuSample(
            uuid=self._uuid,
            taken_at_s=at_s,
            utilisation_ratio=None if rates is None else rates.gpu / 100,
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            temperature_celsius=self._temperature(),
            slowdown_celsius=self._slowdown_celsius,
            power_watts=_scaled(ask("nvmlDeviceGetPowerUsage"), 1e-3),
            power_limit_watts=_scaled(self._limit_mw, 1e-3),
            energy_joules=_scaled(ask("nvmlDeviceGetTotalEnergyConsumption"), 1e-3),
            sm_clock_hz=_scaled(ask("nvmlDeviceGetClockInfo", SM_CLOCK), 1e6),
            max_sm_clock_hz=_scaled(self._max_clock_mhz, 1e6),
            throttles=self._throttles(),
            uncorrected_ecc_errors=self._ecc_errors,
            processes=self._processes(),
        )
        if _says_nothing(sample):
            raise GpuReadError(GpuFault.FAILED, self.device.odd_error or "none of its sensors answers")
        return sample

    def _read_slow(self, at_s: float) -> None:
        if self._learnt_at_s is None or at_s - self._learnt_at_s >= RELEARN_S:
            self._learnt_at_s = at_s
            self.device.relearn()
        if self._slow_at_s is not None and at_s - self._slow_at_s < SLOW_S:
            return
        ask = self.device.ask
        self._slowdown_celsius = ask("nvmlDeviceGetTemperatureThreshold", SLOWDOWN)
        self._limit_mw = self.device.ask_first("nvmlDeviceGetEnforcedPowerLimit", "nvmlDeviceGetPowerManagementLimit")
        self._max_clock_mhz = ask("nvmlDeviceGetMaxClockInfo", SM_CLOCK)
        self._ecc_errors = ask("nvmlDeviceGetTotalEccErrors", UNCORRECTED, SINCE_LOAD)
        self._slow_at_s = at_s

    def _temperature(self) -> float | None:
        celsius = self.device.ask("nvmlDeviceGetTemperature", GPU_SENSOR)
        return _scaled(self.device.ask("nvmlDeviceGetTemperatureV", GPU_SENSOR) if celsius is None else celsius, 1.0)

    def _throttles(self) -> frozenset[Throttle] | None:
        mask = self.device.ask_first(
            "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"
        )
        return None if mask is None else frozenset(reason for bit, reason in THROTTLES.items() if mask & bit)

    def _processes(self) -> tuple[GpuProcess, ...] | None:
        """Those that compute and those that draw, which are listed apart; one that does both stands in both lists."""
        compute, graphics = (
            self.device.ask_first(f"nvmlDeviceGet{kind}RunningProcesses_v3", f"nvmlDeviceGet{kind}RunningProcesses_v2")
            for kind in ("Compute", "Graphics")
        )
        if compute is None:
            return None
        used: dict[int, int | None] = {}
        for process in (*compute, *(graphics or ())):
            known, more = used.get(process.pid), process.usedGpuMemory
            used[process.pid] = known if more is None else max(more, known or 0)
        return tuple(GpuProcess(pid, memory_bytes) for pid, memory_bytes in sorted(used.items()))


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value * unit


def _says_nothing(sample: GpuSample) -> bool:
    values = (sample.utilisation_ratio, sample.memory_used_bytes, sample.temperature_celsius, sample.power_watts)
    return all(value is None for value in values) and sample.sm_clock_hz is None

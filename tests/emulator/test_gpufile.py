"""What an emulated GPU's sensors say."""

from __future__ import annotations

import pytest

from corral.emulator.gpufile import THROTTLE_IDLE, THROTTLE_THERMAL, GpuFacts, Readings

FACTS = GpuFacts(memory_bytes=24 << 30, idle_watts=20.0, limit_watts=400.0, max_clock_mhz=2000, slowdown_celsius=90.0)


def test_an_idle_gpu_stays_cool_and_says_that_it_is_idle() -> None:
    reading = Readings(FACTS).next(0.0, {}, 60.0)
    assert (reading["utilisation"], reading["temperature"], reading["power_mw"]) == (0, 33, 20_000)
    assert (reading["throttle"], reading["sm_clock"], reading["memory_used"]) == (THROTTLE_IDLE, 210, 0)
    assert reading["energy_mj"] == 20_000 * 60


def test_a_busy_gpu_warms_up_by_and_by_and_takes_more_power() -> None:
    readings = Readings(FACTS)
    seen = [readings.next(1.0, {7: 100, 8: 50}, 10.0) for _ in range(12)]
    temperatures = [int(str(reading["temperature"])) for reading in seen]
    assert temperatures == sorted(temperatures)
    assert (temperatures[0], temperatures[-1]) == (46, 67)
    assert seen[-1] | {"energy_mj": 0} == {
        "utilisation": 100,
        "memory_used": 150,
        "memory_reserved": 457 << 20,
        "temperature": 67,
        "power_mw": 300_000,
        "energy_mj": 0,
        "sm_clock": 1800,
        "throttle": 0,
        "processes": "7:100 8:50",
    }


def test_a_hot_gpu_throttles() -> None:
    readings = Readings(GpuFacts(24 << 30, 20.0, 400.0, 2000, slowdown_celsius=60.0))
    cool = readings.next(1.0, {}, 1.0)
    hot = readings.next(1.0, {}, 60.0)
    assert (cool["throttle"], hot["throttle"]) == (0, THROTTLE_THERMAL)
    assert (cool["sm_clock"], hot["sm_clock"]) == (1800, 1200)


@pytest.mark.parametrize("speed", [1.0, 20.0])
def test_a_fast_emulation_warms_faster_and_meters_energy_in_real_seconds(speed: float) -> None:
    readings = Readings(FACTS)
    reading = readings.next(1.0, {}, 1.0, speed)
    assert readings.temperature_c == pytest.approx(34.66 if speed == 1.0 else 54.49, abs=0.01)
    assert reading["energy_mj"] == 300_000

"""What readings of GPUs become for the scheduler, rule by rule; what is not known changes nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from corral.gateway.schedule.gpuload import GIB, UNMEASURED_SLOWDOWN, GpuGauge, OwnUse
from corral.model import GpuLoad, GpuSample, Throttle

IDLE = GpuSample(
    "A",
    0.0,
    utilisation_ratio=0.0,
    memory_used_bytes=0,
    memory_total_bytes=24 * GIB,
    temperature_celsius=40.0,
    slowdown_celsius=90.0,
    power_watts=50.0,
    power_limit_watts=400.0,
    sm_clock_hz=0.2e9,
    max_sm_clock_hz=2.5e9,
    throttles=frozenset(),
)
AT_WORK = replace(IDLE, utilisation_ratio=0.9, sm_clock_hz=2.0e9, temperature_celsius=70.0)
THROTTLED = replace(AT_WORK, sm_clock_hz=1.25e9, throttles=frozenset({Throttle.THERMAL}))
OURS = OwnUse(inflight=2, sent=9, vram_bytes=0)
NOTHING = OwnUse(vram_bytes=0)
SLEEPY = replace(IDLE, utilisation_ratio=None)


class Bench:
    """A gauge, read every two seconds."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.gauge = GpuGauge()

    def read(self, *samples: GpuSample | None, own: OwnUse = OURS, times: int = 1) -> GpuLoad:
        load = None
        for _ in range(times):
            self.now_s += 2.0
            load = self.gauge.read(samples, own, self.now_s)
        assert load is not None
        return load


def near(value: float) -> Any:
    return pytest.approx(value, abs=0.03)


def at_work(times: int = 10) -> Bench:
    bench = Bench()
    assert bench.read(AT_WORK, times=times).slowdown == 1.0
    return bench


# -- slowdown


@pytest.mark.parametrize(
    "throttle", [Throttle.THERMAL, Throttle.HARDWARE, Throttle.HARDWARE_THERMAL, Throttle.POWER_BRAKE]
)
def test_a_gpu_that_throttles_is_as_much_slower_as_its_clock_is(throttle: Throttle) -> None:
    bench, throttled = at_work(), replace(THROTTLED, throttles=frozenset({throttle}))
    first = bench.read(throttled).slowdown
    assert 1.0 < first < 1.2, "little by little"
    assert bench.read(throttled, times=30).slowdown == near(1.6)


def test_a_gpu_at_its_power_limit_is_no_slower_than_ever() -> None:
    bench, capped = at_work(), replace(THROTTLED, throttles=frozenset({Throttle.POWER_CAP}))
    assert bench.read(capped, times=30).slowdown == 1.0


def test_the_clock_at_the_power_limit_is_the_usual_one() -> None:
    bench = Bench()
    bench.read(replace(AT_WORK, sm_clock_hz=1.5e9, throttles=frozenset({Throttle.POWER_CAP})), times=10)
    assert bench.read(THROTTLED, times=30).slowdown == near(1.2)


def test_a_gpu_near_its_slowdown_temperature_is_judged_by_its_clock() -> None:
    bench, hot = at_work(), replace(AT_WORK, temperature_celsius=87.0)
    assert bench.read(hot, times=30).slowdown == 1.0, "it holds its clock"
    assert bench.read(replace(hot, sm_clock_hz=1.6e9), times=30).slowdown == near(1.25)
    cooler = replace(hot, temperature_celsius=86.9, sm_clock_hz=1.6e9)
    assert bench.read(cooler, times=60).slowdown == 1.0, "a lower clock alone is no trouble"


def test_a_slowdown_ends_little_by_little() -> None:
    bench = at_work()
    before = bench.read(THROTTLED, times=30).slowdown
    after = [bench.read(AT_WORK).slowdown for _ in range(40)]
    assert before > after[0] > 1.4, "not at once"
    assert after == sorted(after, reverse=True)
    assert after[-1] == 1.0


def test_no_gpu_counts_as_more_than_twice_as_slow_or_as_faster_than_ever() -> None:
    bench = at_work()
    assert bench.read(replace(THROTTLED, sm_clock_hz=0.1e9), times=60).slowdown == near(2.0)
    assert bench.read(replace(THROTTLED, sm_clock_hz=9.0e9), times=60).slowdown == 1.0


@pytest.mark.parametrize("change", [{"sm_clock_hz": None}, {"utilisation_ratio": None}, {"sm_clock_hz": 0.0}])
def test_without_clocks_a_gpu_that_says_it_throttles_gets_a_fixed_slowdown(change: dict[str, Any]) -> None:
    bench = at_work()
    assert bench.read(replace(THROTTLED, **change), times=60).slowdown == near(UNMEASURED_SLOWDOWN)


def test_without_clocks_heat_alone_is_no_slowdown() -> None:
    hot = replace(AT_WORK, temperature_celsius=89.0, sm_clock_hz=None, throttles=None)
    assert Bench().read(hot, times=60).slowdown == 1.0


def test_a_gpu_that_was_never_seen_at_full_speed_gets_the_fixed_slowdown() -> None:
    assert Bench().read(THROTTLED, times=60).slowdown == near(UNMEASURED_SLOWDOWN)


def test_the_low_clock_of_an_idle_gpu_is_no_slowdown() -> None:
    bench = at_work()
    assert bench.read(replace(IDLE, temperature_celsius=89.0), times=30).slowdown == 1.0


def test_a_throttled_gpu_that_idles_is_as_slow_as_it_was_at_work() -> None:
    bench = at_work()
    bench.read(THROTTLED, times=40)
    idle = replace(IDLE, throttles=THROTTLED.throttles)
    assert bench.read(idle, own=NOTHING, times=40).slowdown == near(1.6)


def test_what_a_gpu_does_while_it_throttles_does_not_become_its_usual_clock() -> None:
    bench = at_work()
    assert bench.read(THROTTLED, times=1_000).slowdown == near(1.6)


def test_unknown_sensors_slow_nothing_down() -> None:
    assert Bench().read(GpuSample("A", 0.0), own=OwnUse(), times=60) == GpuLoad()


# -- foreign load


def test_work_while_none_is_ours_is_foreign_from_the_third_reading() -> None:
    bench = Bench()
    busy = replace(IDLE, utilisation_ratio=0.8)
    assert [bench.read(busy, own=NOTHING).foreign for _ in range(4)] == [0.0, 0.0, 0.8, 0.8]


def test_readings_that_come_quickly_have_to_show_it_for_two_seconds() -> None:
    bench, busy = Bench(), replace(IDLE, utilisation_ratio=0.8)
    found = []
    for _ in range(30):
        bench.now_s -= 1.9
        found.append(bench.read(busy, own=NOTHING).foreign)
    assert found[:19] == [0.0] * 19
    assert found[-1] == 0.8


def test_a_desktop_is_no_foreign_load() -> None:
    assert Bench().read(replace(IDLE, utilisation_ratio=0.1), own=NOTHING, times=9).foreign == 0.0


def test_foreign_load_fades_when_it_is_gone() -> None:
    bench = Bench()
    bench.read(replace(IDLE, utilisation_ratio=1.0), own=NOTHING, times=5)
    fading = [bench.read(IDLE, own=NOTHING).foreign for _ in range(30)]
    assert 0.7 < fading[0] < 1.0
    assert fading[4] == near(0.37)
    assert fading[-1] == 0.0


def test_own_work_is_never_foreign() -> None:
    assert Bench().read(AT_WORK, own=OURS, times=20).foreign == 0.0
    assert Bench().read(AT_WORK, own=OwnUse(is_loading=True, vram_bytes=0), times=20).foreign == 0.0


def test_own_requests_that_come_and_go_between_two_readings_are_not_foreign() -> None:
    bench = Bench()
    for sent in range(20):
        assert bench.read(replace(IDLE, utilisation_ratio=0.5), own=OwnUse(sent=sent, vram_bytes=0)).foreign == 0.0


def test_the_reading_right_after_own_work_still_shows_it() -> None:
    bench = Bench()
    for _ in range(5):
        bench.read(AT_WORK, own=OURS)
        found = [bench.read(AT_WORK, own=replace(OURS, inflight=0)).foreign for _ in range(3)]
        assert found == [0.0] * 3


def test_foreign_load_that_own_work_hides_is_forgotten_slowly() -> None:
    bench = Bench()
    bench.read(AT_WORK, own=NOTHING, times=5)
    after = [bench.read(AT_WORK, own=OURS).foreign for _ in range(30)]
    assert after[4] > 0.7, "after ten seconds most of it stands"
    assert after[29] == near(0.9 * 0.37)
    assert bench.read(AT_WORK, own=OURS, times=200).foreign == 0.0


def test_memory_that_is_not_ours_is_foreign_where_utilisation_is_not_known() -> None:
    held = replace(SLEEPY, memory_used_bytes=10 * GIB)
    assert Bench().read(held, own=OwnUse(vram_bytes=4 * GIB), times=3).foreign == 1.0
    assert Bench().read(held, own=OwnUse(vram_bytes=8 * GIB), times=9).foreign == 0.0, "within the margin"
    assert Bench().read(held, own=OwnUse(vram_bytes=None), times=9).foreign == 0.0


def test_memory_that_others_hold_without_working_is_hardly_any_load() -> None:
    assert Bench().read(replace(IDLE, memory_used_bytes=10 * GIB), own=NOTHING, times=9).foreign == 0.0


def test_a_failed_reading_begins_the_count_anew() -> None:
    bench, busy = Bench(), replace(IDLE, utilisation_ratio=0.8)
    bench.read(busy, own=NOTHING, times=2)
    assert bench.gauge.read([None], NOTHING, bench.now_s + 2) is None
    assert bench.read(busy, own=NOTHING, times=2).foreign == 0.0
    assert bench.read(busy, own=NOTHING).foreign == 0.8


# -- foreign memory


def test_foreign_memory_is_what_is_used_but_not_by_our_models_and_processes() -> None:
    held = replace(IDLE, memory_used_bytes=10 * GIB)
    assert Bench().read(held, own=OwnUse(vram_bytes=4 * GIB)).foreign_bytes == 5.5 * GIB
    assert Bench().read(held, own=OwnUse(vram_bytes=4 * GIB, models=3)).foreign_bytes == 4.5 * GIB
    assert Bench().read(held, held, own=OwnUse(vram_bytes=4 * GIB)).foreign_bytes == 15 * GIB
    assert Bench().read(held, own=OwnUse(vram_bytes=12 * GIB)).foreign_bytes == 0, "never below nothing"
    assert Bench().read(held, own=OwnUse(vram_bytes=None)).foreign_bytes is None
    assert Bench().read(replace(IDLE, memory_used_bytes=None), own=NOTHING).foreign_bytes is None


def test_a_model_that_has_just_been_loaded_is_not_foreign_memory() -> None:
    bench, held = Bench(), replace(IDLE, memory_used_bytes=10 * GIB)
    assert bench.read(IDLE, own=NOTHING).foreign_bytes == 0
    assert bench.read(held, own=replace(NOTHING, is_loading=True), times=20).foreign_bytes == 0
    assert bench.read(held, own=NOTHING).foreign_bytes == 0, "it is not listed yet"
    assert bench.read(held, own=OwnUse(vram_bytes=10 * GIB)).foreign_bytes == 0


def test_nothing_is_said_of_foreign_memory_before_it_was_seen_without_a_load() -> None:
    bench, held = Bench(), replace(IDLE, memory_used_bytes=10 * GIB)
    assert bench.read(held, own=replace(NOTHING, is_loading=True)).foreign_bytes is None


# -- ratios, and several GPUs


def test_the_ratios_are_of_what_each_sensor_can_reach() -> None:
    load = Bench().read(replace(AT_WORK, memory_used_bytes=6 * GIB, power_watts=300.0, temperature_celsius=45.0))
    assert (load.utilisation_ratio, load.memory_ratio) == (0.9, 0.25)
    assert (load.temperature_ratio, load.power_ratio) == (0.5, 0.75)
    assert load.memory_bytes == 24 * GIB


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ({"utilisation_ratio": None}, "utilisation_ratio"),
        ({"memory_used_bytes": None}, "memory_ratio"),
        ({"memory_total_bytes": None}, "memory_ratio"),
        ({"memory_total_bytes": 0}, "memory_ratio"),
        ({"slowdown_celsius": None}, "temperature_ratio"),
        ({"power_limit_watts": 0.0}, "power_ratio"),
    ],
)
def test_a_missing_sensor_is_not_known_and_never_zero(change: dict[str, Any], missing: str) -> None:
    other = replace(AT_WORK, uuid="B")
    assert getattr(Bench().read(replace(AT_WORK, **change)), missing) is None
    assert getattr(Bench().read(replace(AT_WORK, **change), other), missing) is None, "the other might be worse"


def test_of_several_gpus_the_worst_counts_and_memory_is_added_up() -> None:
    bench, cool = Bench(), replace(AT_WORK, uuid="B", utilisation_ratio=0.6, memory_total_bytes=8 * GIB)
    bench.read(AT_WORK, cool, times=10)
    load = bench.read(THROTTLED, cool, times=30)
    assert load.slowdown == near(1.6)
    assert (load.utilisation_ratio, load.memory_bytes) == (0.9, 32 * GIB)


def test_each_gpu_is_compared_with_its_own_clock() -> None:
    bench, slow = Bench(), replace(AT_WORK, uuid="B", sm_clock_hz=1.0e9)
    bench.read(AT_WORK, slow, times=10)
    throttled = replace(THROTTLED, uuid="B", sm_clock_hz=0.8e9)
    assert bench.read(AT_WORK, throttled, times=40).slowdown == near(1.25)


def test_one_gpu_without_a_fresh_reading_makes_the_whole_unknown() -> None:
    gauge = GpuGauge()
    assert gauge.read([AT_WORK, None], OURS, 2.0) is None
    assert gauge.read([], OURS, 4.0) is None
    assert gauge.read([AT_WORK, replace(AT_WORK, uuid="B")], OURS, 6.0) is not None


def test_what_was_learned_of_a_gpu_outlives_a_failed_reading() -> None:
    bench = at_work()
    assert bench.gauge.read([None], OURS, bench.now_s + 2) is None
    assert bench.read(THROTTLED, times=40).slowdown == near(1.6)

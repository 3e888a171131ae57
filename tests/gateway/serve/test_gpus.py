"""The board of GPUs: what is known of each, and who hears of a loss."""

from __future__ import annotations

from corral.gateway.serve.gpus import GOOD_READINGS, GpuBoard, gpu_labels
from corral.gateway.serve.metrics import Metrics
from corral.model import Gpu, GpuCondition, GpuFault, GpuMiss, GpuSample, GpuSurvey, GpuVendor, GpuXid


class Heard:
    """A watcher that writes down what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.read: list[tuple[str, bool]] = []

    def gpu_lost(self, uuid: str, reason: str) -> None:
        self.said.append(f"lost {uuid}: {reason}")

    def gpu_back(self, uuid: str) -> None:
        self.said.append(f"back {uuid}")

    def gpu_xid(self, uuid: str, code: int) -> None:
        self.said.append(f"xid {uuid} {code}")

    def gpu_read(self, uuid: str, *, well: bool) -> None:
        self.read.append((uuid, well))


def gpu(uuid: str, index: int = 0, *, parent: str | None = None, vendor: GpuVendor = GpuVendor.NVIDIA) -> Gpu:
    return Gpu(uuid, index, vendor, "a GPU", 1 << 34, parent_uuid=parent)


class Bench:
    """A board over two GPUs, with a clock that the test moves."""

    def __init__(self, *gpus: Gpu) -> None:
        self.now_s = 10.0
        self.metrics = Metrics()
        self.board = GpuBoard(lambda: self.now_s, 2.0, self.metrics)
        self.heard = Heard()
        self.board.watcher = self.heard
        self.board.use(GpuSurvey(gpus or (gpu("A"), gpu("B", 1))))

    def read(self, uuid: str = "A", times: int = 1) -> None:
        for _ in range(times):
            self.board.gpu_sampled(GpuSample(uuid, self.now_s, utilisation_ratio=0.5))

    def miss(self, fault: GpuFault, uuid: str = "A") -> None:
        self.board.gpu_missed(GpuMiss(uuid, self.now_s, fault, "as told"))

    def condition(self, uuid: str = "A") -> GpuCondition:
        return next(state.condition for state in self.board.states() if state.gpu.uuid == uuid)


def test_a_gpu_is_unknown_until_it_is_read() -> None:
    bench = Bench()
    assert bench.condition() is GpuCondition.UNKNOWN
    bench.read()
    assert (bench.condition(), bench.condition("B")) == (GpuCondition.OK, GpuCondition.UNKNOWN)


def test_a_reading_grows_stale_and_is_never_taken_for_idle() -> None:
    bench = Bench()
    bench.read()
    bench.now_s += 7.1
    assert bench.condition() is GpuCondition.STALE
    assert bench.board.fresh("A") is None
    bench.read()
    sample = bench.board.fresh("A")
    assert sample is not None
    assert sample.utilisation_ratio == 0.5


def test_a_gpu_that_hangs_or_fails_is_no_loss() -> None:
    bench = Bench()
    bench.read()
    for fault, condition in ((GpuFault.HUNG, GpuCondition.HUNG), (GpuFault.FAILED, GpuCondition.FAILED)):
        bench.miss(fault)
        assert bench.condition() is condition
    assert bench.heard.said == []


def test_a_loss_is_told_once_and_the_return_after_some_good_readings() -> None:
    bench = Bench()
    bench.miss(GpuFault.LOST)
    bench.miss(GpuFault.LOST)
    assert bench.heard.said == ["lost A: as told"]
    bench.read(times=GOOD_READINGS - 1)
    assert bench.condition() is GpuCondition.LOST
    bench.miss(GpuFault.HUNG)
    bench.read(times=GOOD_READINGS - 1)
    assert bench.heard.said == ["lost A: as told"], "a miss in between begins the count anew"
    bench.read()
    assert bench.heard.said == ["lost A: as told", "back A"]
    assert bench.condition() is GpuCondition.OK
    bench.read(times=5)
    assert len(bench.heard.said) == 2


def test_each_reading_is_told_with_how_it_went() -> None:
    bench = Bench()
    bench.read()
    bench.miss(GpuFault.HUNG, "B")
    assert bench.heard.read == [("A", True), ("B", False)]


def test_it_is_waited_for_until_each_gpu_was_read_or_missed() -> None:
    bench = Bench()
    bench.read()
    assert not bench.board.looked.is_set()
    bench.miss(GpuFault.HUNG, "B")
    assert bench.board.looked.is_set()
    assert [sample.uuid for sample in bench.board.samples()] == ["A"]


def test_an_xid_of_a_split_gpu_concerns_its_mig_devices() -> None:
    bench = Bench(gpu("A"), gpu("M0", parent="A"), gpu("M1", parent="A"), gpu("B", 1))
    bench.board.gpu_reported(GpuXid("A", bench.now_s, 79))
    assert bench.heard.said == ["xid A 79", "xid M0 79", "xid M1 79"]
    assert [state.xid for state in bench.board.states()] == [79, 79, 79, None]


def test_another_survey_keeps_what_was_read() -> None:
    bench = Bench()
    bench.read("B")
    bench.board.use(GpuSurvey((gpu("B"), gpu("C", 1))))
    assert [(state.gpu.uuid, state.condition) for state in bench.board.states()] == [
        ("B", GpuCondition.OK),
        ("C", GpuCondition.UNKNOWN),
    ]


def test_gpus_are_called_by_their_index() -> None:
    split = GpuSurvey((gpu("A"), gpu("B", 1), gpu("M0", 1, parent="B"), gpu("M1", 1, parent="B")))
    assert gpu_labels(split) == {"A": "0", "B": "1", "M0": "1-mig0", "M1": "1-mig1"}
    two = GpuSurvey((gpu("A"), gpu("X", 0, vendor=GpuVendor.AMD)))
    assert gpu_labels(two) == {"A": "nvidia-0", "X": "amd-0"}

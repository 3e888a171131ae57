"""The metrics page is what Prometheus' own library would write, whatever is in names and values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate
from math import inf, nan
from random import Random

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from corral.gateway.serve import textformat
from corral.gateway.serve.exposition import METRICS
from corral.gateway.serve.series import Histogram
from corral.gateway.serve.textformat import TextFormat

NASTY = ("plain", 'a "quoted" name', "back\\slash", "two\nlines", "100 %", "%d %s", "{}", "µ→日本", "", "a=b,c", "\\n")
BOUNDS = (0.001, 0.5, 1.0, 30.0)
GAUGE, COUNTER, HISTOGRAM, BARE = (
    "corral_replica_model_loaded",
    "corral_replica_requests_total",
    "corral_predicted_ratio",
    "corral_event_loop_lag_seconds",
)
Values = list[tuple[tuple[str, ...], float]]
Histograms = list[tuple[tuple[str, ...], Histogram]]


class Theirs(Collector):
    """The same samples, for Prometheus' own library."""

    def __init__(self, gauge: Values, counter: Values, histograms: Histograms, bare: Histogram) -> None:
        self._made = (gauge, counter, histograms, bare)

    def collect(self) -> Iterator[Metric]:
        gauge, counter, histograms, bare = self._made
        yield self._plain(GaugeMetricFamily(GAUGE, METRICS[GAUGE].help, labels=METRICS[GAUGE].labels), gauge)
        yield self._plain(CounterMetricFamily(COUNTER, METRICS[COUNTER].help, labels=METRICS[COUNTER].labels), counter)
        for name, rows in ((HISTOGRAM, histograms), (BARE, [((), bare)])):
            family = HistogramMetricFamily(name, METRICS[name].help, labels=METRICS[name].labels)
            for labels, one in rows:
                edges = [str(bound) for bound in one.bounds] + ["+Inf"]
                family.add_metric(labels, list(zip(edges, accumulate(one.counts), strict=True)), one.sum)
            yield family

    @staticmethod
    def _plain(family: GaugeMetricFamily | CounterMetricFamily, rows: Values) -> Metric:
        for labels, value in rows:
            family.add_metric(labels, value)
        return family


def histogram(random: Random) -> Histogram:
    one = Histogram(BOUNDS)
    for _ in range(random.randrange(20)):
        one.observe(random.choice((0.0, 0.001, 0.25, 1.0, 29.5, 1e9, random.random())))
    return one


def values(random: Random) -> Values:
    numbers = (0, 1, -3, 7.25, 1e-9, 2**60, 1e300, inf, -inf)
    return [((a, b), random.choice(numbers)) for a in NASTY for b in random.sample(NASTY, 3)]


def read(page: bytes) -> list[tuple[str, str, str, list[tuple[str, list[tuple[str, str]], float]]]]:
    families: Iterable[Metric] = text_string_to_metric_families(page.decode())
    return [
        (f.name, f.type, f.documentation, sorted((s.name, sorted(s.labels.items()), float(s.value)) for s in f.samples))
        for f in families
    ]


def ours(format: TextFormat, gauge: Values, counter: Values, histograms: Histograms, bare: Histogram) -> bytes:
    format.begin()
    format.samples(GAUGE, gauge)
    format.samples(COUNTER, counter)
    format.histograms(HISTOGRAM, histograms)
    format.histograms(BARE, [((), bare)])
    return format.page()


def test_a_page_reads_like_the_one_that_prometheus_own_library_writes() -> None:
    random, format = Random(7), TextFormat()
    for _ in range(20):  # one format for all: what it keeps from one page must not show on the next
        histograms: Histograms = [((a, b), histogram(random)) for a in NASTY for b in random.sample(NASTY, 2)]
        made = (values(random), values(random), histograms, histogram(random))
        registry = CollectorRegistry()
        registry.register(Theirs(*made))
        assert read(ours(format, *made)) == read(generate_latest(registry))


def test_no_number_is_written_as_prometheus_spells_it() -> None:
    format = TextFormat()
    format.begin()
    format.samples(GAUGE, [(("a", "b"), nan)])
    assert format.page().endswith(b'{replica="a",model="b"} NaN\n')


def test_what_is_kept_is_bounded() -> None:
    format = TextFormat()
    for number in range(3 * textformat.MAX_KEPT):
        format.begin()
        format.samples(GAUGE, [((str(number), "m"), 1)])
    assert len(format._starts[GAUGE]) <= textformat.MAX_KEPT
    assert format.page().endswith(b'{replica="%d",model="m"} 1\n' % number)

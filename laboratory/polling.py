"""The gateway's poller in virtual time: probes and readings in its rhythm, each answered at once."""

from __future__ import annotations

from random import Random
from typing import Protocol

from corral.emulator.runner import Runner
from corral.gateway.serve.watch import DOUBT_PROBES, DOUBT_SHARE, KICK_GAP_S, TAGS_EVERY
from corral.laboratory.clock import Alarm, Clock
from corral.laboratory.replica import VirtualReplica
from corral.model import InstalledModel, LoadedModel, OllamaSample, ProbeResult

INTERVAL_S = 1.0
VERSION = "0.32.15"


class Feed(Protocol):
    """Where the readings go."""

    def probed(self, replica_id: str, result: ProbeResult) -> None: ...

    def sampled(self, sample: OllamaSample) -> None: ...


class Watch:
    """The polling of one replica."""

    def __init__(self, replica: VirtualReplica, feed: Feed, clock: Clock, rng: Random) -> None:
        self._replica = replica
        self._feed = feed
        self._clock = clock
        self._rng = rng
        self._alarm = Alarm(clock, self.probe)
        self._due_s = 0.0
        self._probed_s = 0.0
        self._rounds = 0
        self._misses = 0
        self._answered = False

    def probe(self) -> None:
        """One round: is it there, and if so, what is in its memory and now and then what it has installed."""
        appeared = self._replica.is_alive and not self._answered
        self._answered = self._replica.is_alive
        self._misses = 0 if self._answered else self._misses + 1
        self._probed_s = self._clock.now_s
        self._rounds += 1
        self._plan()
        result = ProbeResult.ANSWERED if self._answered else ProbeResult.REFUSED
        self._feed.probed(self._replica.id, result)
        if appeared or (self._answered and self._rounds % TAGS_EVERY == 0):
            self.read_tags()
        if self._answered:
            self.read_ps()

    def kick(self) -> None:
        """A request failed there: probe it now."""
        self._due_s = min(self._due_s, max(self._clock.now_s, self._probed_s + KICK_GAP_S))
        self._alarm.set(self._due_s)

    def read_tags(self) -> None:
        if self._replica.is_alive:
            models = self._replica.models.values()
            installed = tuple(
                InstalledModel(model.name, model.blob_digest, size_bytes=model.file_bytes) for model in models
            )
            self._feed.sampled(OllamaSample(self._replica.id, self._clock.now_s, VERSION, installed, None))

    def read_ps(self) -> None:
        if not self._replica.is_alive:
            return
        now_s = self._clock.now_s
        loaded = tuple(map(_line, self._replica.listed(now_s)))
        self._feed.sampled(OllamaSample(self._replica.id, now_s, VERSION, None, loaded))

    def _plan(self) -> None:
        in_doubt = 0 < self._misses < DOUBT_PROBES
        share = DOUBT_SHARE if in_doubt else self._rng.uniform(0.9, 1.0)
        self._due_s = self._clock.now_s + INTERVAL_S * share
        self._alarm.set(self._due_s)


def _line(runner: Runner) -> LoadedModel:
    return LoadedModel(runner.job.name, runner.bytes_total, runner.bytes_vram, runner.context_tokens)

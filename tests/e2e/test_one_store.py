"""A thousand random requests to a gateway in front of three replicas, whose stores a client sees as one.

After each of them the pages say what a dictionary of names says, whatever is generated meanwhile, and a model that was
deleted answers nobody.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.conformance.gateways import Front, gateway_before
from tests.conformance.raw import Answer, Wire, ask
from tests.e2e.store_model import Change, Copy, Create, Delete, Digests, Pull, Store, outcomes

EXAMPLES, STEPS = 30, 50
CHATS, EMBEDS = ("smollm2:135m", "gemma3:270m"), "all-minilm:latest"
PUBLISHED = (*CHATS, EMBEDS)
NAMES = (*PUBLISHED, "mine:latest", "mine:v2", "team/mine:latest")
OPTIONS = ("--speed", "50", "--parallel", "2", "--context-length", "4096", "--keep-alive", "24h")
QUICK = ("--load-seconds", "0.5", "--pull-seconds", "0.5")
PATIENCE_S = 10.0
STREAM_TOKENS = 150

names = st.sampled_from(NAMES)
spelled = st.builds(
    lambda name, spell: spell(name), names, st.sampled_from([str, str.upper, lambda name: name.removesuffix(":latest")])
)


def plain(name: str) -> str:
    """The name that is listed, of any of its spellings."""
    lower = name.lower()
    return lower if ":" in lower else f"{lower}:latest"


class OneStore(RuleBasedStateMachine):
    """Clients of the gateway, and what they must see."""

    front: ClassVar[Front]
    digests: ClassVar[Digests]
    published: ClassVar[dict[str, int]]
    asked: ClassVar[int]

    def __init__(self) -> None:
        super().__init__()
        self.wire = Wire(self.front.url)
        self.store: Store = {}
        self.loaded: set[tuple[str, int]] = set()
        """Weights that may be in memory."""
        self.streams: list[tuple[Wire, str]] = []
        self.said: list[str] = []

    def teardown(self) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, Exception):
            held = [(each.name, ask(each.url, "GET", "/api/ps").json()["models"]) for each in self.front.emulators]
            last = self.front.gateway.said().splitlines()[-40:]
            print("\n".join((*self.said, f"{type(error).__name__}: {error}", f"{held}", *last)))  # noqa: T201
        self.end_streams()
        self.wire.socket.close()

    def ask(self, method: str, path: str, **fields: Any) -> Answer:
        """One request, counted and noted for a test that fails."""
        answer = self.wire.ask(method, path, fields)
        self.note(f"{method} {path} {str(fields)[:100]} -> {answer.status} {answer.body[-100:]!r}")
        return answer

    def note(self, what: str) -> None:
        type(self).asked += 1
        self.said.append(what)

    @initialize()
    def two_models(self) -> None:
        for name in self.tags():
            assert self.ask("DELETE", "/api/delete", model=name).status == 200
        for name in PUBLISHED[1:]:
            self.change(Pull(name, self.published[name]))

    # -- what changes the store

    @rule(name=st.sampled_from(PUBLISHED))
    def publish(self, name: str) -> None:
        """From now on a pull gets another version."""
        self.published[name] += 1
        body = {"model": name, "version": self.published[name]}
        assert ask(self.front.emulators[0].url, "POST", "/emulator/publish", body).status == 200

    @rule(name=st.sampled_from(PUBLISHED))
    def pull(self, name: str) -> None:
        self.change(Pull(name, self.published[name]))

    @rule(source=spelled, to=names)
    def copy(self, source: str, to: str) -> None:
        if plain(source) in self.store:
            self.change(Copy(plain(source), to))
        else:
            answer = self.ask("POST", "/api/copy", source=source, destination=to)
            assert (answer.status, answer.json()) == (404, {"error": f'model "{source}" not found'})

    @rule(source=names, to=names, system=st.sampled_from(["", "Be brief.", "Sing."]))
    def create(self, source: str, to: str, system: str) -> None:
        if source in self.store:
            self.change(Create(source, to, system))

    @rule(name=spelled)
    def delete(self, name: str) -> None:
        if plain(name) in self.store:
            self.change(Delete(plain(name)))
        else:
            self.assert_not_found(self.ask("DELETE", "/api/delete", model=name), name)

    @rule(stream=st.booleans())
    def pull_what_nobody_has(self, stream: bool) -> None:
        answer = self.ask("POST", "/api/pull", model="no-such-model", stream=stream)
        assert answer.status == (200 if stream else 500)
        assert answer.lines()[-1] == {"error": "pull model manifest: file does not exist"}

    @rule(name=names, source=names, to=names)
    def change_at_once(self, name: str, source: str, to: str) -> None:
        """Three clients, none of whom waits for another: as if they came one after the other, in any order."""
        pull = Pull(CHATS[0], self.published[CHATS[0]])
        self.change(pull, Delete(name), Copy(source, to))

    @rule(name=st.sampled_from(CHATS), source=names)
    def change_what_is_asked(self, name: str, source: str) -> None:
        """Whoever asks meanwhile is answered by the old one, by the new one, or, where it is deleted, by none."""
        self.publish(name)
        for change in (Pull(name, self.published[name]), Copy(source, name), Delete(name)):
            if name not in self.store or self.store[name].origin == EMBEDS:
                return
            self.loaded.add(self.store[name].weights)
            with Wire(self.front.url) as wire:
                wire.send("POST", "/api/generate", {"model": name, "prompt": "Hi.", "options": {"num_predict": 9}})
                self.change(change)
                answer = wire.receive()
            if answer.status == 404 and name not in self.store:
                self.assert_not_found(answer, name)
            elif name not in self.store or self.store[name].origin != EMBEDS:
                assert answer.lines()[-1]["done"] is True, answer
            if name in self.store:
                self.loaded.add(self.store[name].weights)

    def change(self, *changes: Change) -> None:
        wires = [Wire(self.front.url) for _ in changes]
        for wire, change in zip(wires, changes, strict=True):
            method, path, body = change.request
            wire.send(method, path, body)
        done = tuple(succeeded(wire.receive()) for wire in wires)
        for wire in wires:
            wire.socket.close()
        self.note(f"{changes} -> {done}")
        listed = self.tags()
        fitting = [after for could, after in outcomes(self.store, changes) if could == done]
        fitting = [after for after in fitting if self.digests.fits(after, listed)]
        assert fitting, (changes, done, listed, self.store)
        self.store = fitting[0]

    # -- what uses it

    @rule(name=spelled)
    def show(self, name: str) -> None:
        answer = self.ask("POST", "/api/show", model=name)
        if self.is_there(name, answer):
            assert answer.json().get("system", "") == self.store[plain(name)].system

    @rule(name=spelled)
    def chat(self, name: str) -> None:
        messages = [{"role": "user", "content": "Hi."}]
        answer = self.ask("POST", "/api/chat", model=name, messages=messages, options={"num_predict": 2})
        if self.is_there(name, answer) and self.converses(name, answer):
            assert answer.lines()[-1]["done"] is True
            self.assert_in_memory(name)

    @rule(name=spelled)
    def load(self, name: str) -> None:
        answer = self.ask("POST", "/api/generate", model=name)
        if self.is_there(name, answer) and self.converses(name, answer):
            assert (answer.status, answer.json()["done_reason"]) == (200, "load")
            self.assert_in_memory(name)

    @rule(name=names)
    def unload(self, name: str) -> None:
        answer = self.ask("POST", "/api/generate", model=name, keep_alive=0)
        if self.is_there(name, answer):
            assert (answer.status, answer.json()["done_reason"]) == (200, "unload")
            if not self.streams:
                self.loaded.discard(self.store[name].weights)

    @rule(name=names, count=st.integers(1, 40))
    def embed(self, name: str, count: int) -> None:
        if name in self.store and self.store[name].origin != EMBEDS:
            return
        answer = self.ask("POST", "/api/embed", model=name, input=[f"Text {number}." for number in range(count)])
        if name in self.store:
            assert (answer.status, len(answer.json()["embeddings"])) == (200, count)
            self.assert_in_memory(name)
        else:
            error = f'model "{name}" not found, try pulling it first'
            assert (answer.status, answer.json()) == (404, {"error": error})

    @rule(name=names)
    def begin_to_stream(self, name: str) -> None:
        """An answer that is generated on while the store changes."""
        if name in self.store and self.store[name].origin != EMBEDS and len(self.streams) < 3:
            self.loaded.add(self.store[name].weights)
            wire = Wire(self.front.url)
            self.streams.append((wire, name))
            options = {"num_predict": STREAM_TOKENS}
            wire.send("POST", "/api/generate", {"model": name, "prompt": "Go on.", "options": options})
            wire.first_bytes()
            self.note(f"a stream of {name} began")

    @rule()
    def end_streams(self) -> None:
        """None was cut, whatever became of its model since."""
        while self.streams:
            wire, name = self.streams.pop()
            with wire:
                last = wire.receive().lines()[-1]
            assert (last["done"], last["eval_count"]) == (True, STREAM_TOKENS), (name, last)

    def is_there(self, name: str, answer: Answer) -> bool:
        """Whether the model is; where it is not, the answer must say so."""
        if plain(name) not in self.store:
            self.assert_not_found(answer, name)
            return False
        return True

    def converses(self, name: str, answer: Answer) -> bool:
        """Whether it is no embedding model; where it is one, Ollama says no (the gateway may have loaded it before)."""
        model = self.store[plain(name)]
        self.loaded.add(model.weights)
        assert answer.status == (400 if model.origin == EMBEDS else 200), answer
        return model.origin != EMBEDS

    @staticmethod
    def assert_not_found(answer: Answer, name: str) -> None:
        assert (answer.status, answer.json()) == (404, {"error": f"model '{name}' not found"})

    # -- what the pages say

    def page(self, path: str) -> Any:
        return self.wire.ask("GET", path).json()

    def tags(self) -> dict[str, str]:
        return {entry["name"]: entry["digest"] for entry in self.page("/api/tags")["models"]}

    def in_memory(self) -> set[tuple[str, str]]:
        return {(entry["name"], entry["digest"]) for entry in self.page("/api/ps")["models"]}

    def assert_in_memory(self, name: str) -> None:
        """It was just used: it is in memory by its name, or by another that has the same weights."""
        weights = self.store[plain(name)].weights
        self.loaded.add(weights)
        alike = {other for other, model in self.store.items() if model.weights == weights}
        assert alike & {shown for shown, _ in self.in_memory()}, name

    @invariant()
    def the_pages_say_what_is_there(self) -> None:
        listed = self.tags()
        self.digests.learn(self.store, listed)
        assert [entry["id"] for entry in self.page("/v1/models")["data"] or ()] == list(listed)
        deadline_s = time.monotonic() + PATIENCE_S
        while strange := self.in_memory() - self.may_be_loaded():  # an old one whose stream has not ended
            assert time.monotonic() < deadline_s, strange
            time.sleep(0.01)

    def may_be_loaded(self) -> set[tuple[str, str]]:
        """Only what is there, and was asked for since it was unloaded."""
        return {(name, self.digests[model]) for name, model in self.store.items() if model.weights in self.loaded}


def succeeded(answer: Answer) -> bool:
    """Of a change of the store, streamed or not."""
    return answer.status == 200 and (not answer.body or answer.lines()[-1] == {"status": "success"})


@pytest.mark.parametrize("one_store", [True, False], ids=["one store", "separate stores"])
def test_the_views_always_equal_a_model_of_the_store_and_a_deleted_model_answers_nobody(
    one_store: bool, tmp_path: Path
) -> None:
    began_s = time.monotonic()
    with gateway_before(3, *OPTIONS, *QUICK, "--registry", str(tmp_path / "published"), one_store=one_store) as behind:

        class Machine(OneStore):
            front, digests, published, asked = behind, Digests(), dict.fromkeys(PUBLISHED, 1), 0

        # Only what is random: an outer world that goes on cannot be asked the same again to make a failure smaller.
        chosen = settings(max_examples=EXAMPLES, stateful_step_count=STEPS, phases=[Phase.generate])
        run_state_machine_as_test(Machine, settings=chosen)
        print(f"\n{Machine.asked} requests in {time.monotonic() - began_s:.0f} s")  # noqa: T201
        assert Machine.asked >= 1000
        for each in behind.emulators:
            assert ask(each.url, "GET", "/emulator/verify").json()["problems"] == []
        assert "bug where" not in behind.gateway.said()
        assert "Traceback" not in behind.gateway.said()

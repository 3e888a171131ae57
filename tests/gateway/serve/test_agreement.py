"""Who is believed not to share a store, and who is only behind."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from corral.gateway.serve.agreement import Agreement
from corral.gateway.serve.views import ReplicaPages
from corral.model import InstalledModel
from corral.probes.ollama import TagsEntry

SENTENCE = (
    "r1 and r2 are said to share the store 'shared' but list different models: give them `store:` names of their own"
)


class Box:
    """Three replicas of one store."""

    def __init__(self) -> None:
        self.agreement = Agreement()
        self.agreement.use({"r1": "shared", "r2": "shared", "r3": "shared", "other": "own"})
        self.told = 0

    def read(self, replica_id: str, models: Iterable[str], began_s: float, ended_s: float | None = None) -> None:
        """``models``: ``name`` or ``name@digest``."""
        tags = tuple(_entry(model) for model in models)
        page = ReplicaPages(replica_id, tags=tags, tags_at_s=began_s)
        self.told += self.agreement.read(page, began_s if ended_s is None else ended_s)


def _entry(model: str) -> TagsEntry:
    name, _, digest = model.partition("@")
    return TagsEntry(InstalledModel(name, digest or "d"), name, 1.0, model.encode())


def test_two_that_go_on_to_differ_are_believed_and_told_of_once() -> None:
    box = Box()
    for round_s in (0.0, 5.0, 10.0, 15.0):
        box.read("r1", ["a", "b"], round_s)
        box.read("r2", ["b"], round_s + 0.1)
    assert box.agreement.advice == (SENTENCE,)
    assert not box.agreement.is_one("shared")
    assert box.told == 1


def test_a_list_that_is_only_older_is_no_difference() -> None:
    box = Box()
    box.read("r1", ["a"], 0.0)
    box.read("r2", ["a", "new"], 0.1)  # pulled in between
    box.read("r2", ["a", "new"], 5.1)
    box.read("r2", ["a", "new"], 10.1)  # the first one cannot be read
    assert box.agreement.advice == ()
    box.read("r1", ["a", "new"], 10.2)
    assert box.agreement.advice == ()


def test_a_model_that_goes_and_comes_back_once_was_being_written_over() -> None:
    box = Box()
    box.read("r1", ["a"], 0.0)
    box.read("r2", [], 0.1)
    for round_s in (5.0, 10.0, 15.0):
        box.read("r1", ["a"], round_s)
        assert box.agreement.advice == ()
        box.read("r2", ["a"], round_s + 0.1)


def test_a_list_that_took_long_may_be_of_before_or_after() -> None:
    box = Box()
    for round_s in (0.0, 5.0, 10.0, 15.0):
        box.read("r1", ["a"], round_s)
        box.read("r2", [], round_s + 0.1, ended_s=round_s + 6.0)
    assert box.agreement.advice == ()


def test_a_model_that_the_gateway_itself_had_deleted_and_pulled_again_makes_no_difference() -> None:
    box = Box()
    for round_s in (0.0, 5.0, 10.0, 15.0):
        box.read("r1", ["a"], round_s)
        box.read("r2", [], round_s + 0.1)
        box.agreement.changed("shared")
        box.read("r1", ["a"], round_s + 0.2)
    assert box.agreement.advice == ()


def test_who_has_a_store_of_its_own_may_list_what_it_likes() -> None:
    box = Box()
    for round_s in (0.0, 5.0, 10.0, 15.0):
        box.read("r1", ["a"], round_s)
        box.read("other", ["b"], round_s + 0.1)
        box.read("nobody", ["c"], round_s + 0.2)
    assert box.agreement.advice == ()


def test_another_version_under_one_name_is_a_difference() -> None:
    box = Box()
    for round_s in (0.0, 5.0, 10.0, 15.0):
        box.read("r1", ["a@old"], round_s)
        box.read("r2", ["a@new"], round_s + 0.1)
    assert box.agreement.advice == (SENTENCE,)


def test_a_store_that_changes_all_the_time_is_still_one() -> None:
    box = Box()
    for number in range(20):
        box.read("r1", [f"m{2 * number}"], float(number))
        box.read("r2", [f"m{2 * number + 1}"], number + 0.1)
    assert box.agreement.advice == ()


def test_all_who_differ_are_named_together() -> None:
    box = Box()
    for round_s in (0.0, 5.0, 10.0, 15.0):
        for number, replica_id in enumerate(("r1", "r2", "r3")):
            box.read(replica_id, [f"m{number}"], round_s + number / 10)
    (advice,) = box.agreement.advice
    assert advice.startswith("r1, r2 and r3 are said to share the store 'shared'")
    assert box.told == 1


def test_who_agrees_again_or_gets_a_store_of_its_own_is_told_of_no_more() -> None:
    for settle in ("agree", "name", "remove"):
        box = Box()
        for round_s in (0.0, 5.0, 10.0, 15.0):
            box.read("r1", ["a"], round_s)
            box.read("r2", ["b"], round_s + 0.1)
        assert box.agreement.advice
        if settle == "agree":
            box.read("r1", ["b"], 20.0)
        else:
            box.agreement.use({"r1": "shared", "r2": "own"} if settle == "name" else {"r1": "shared"})
        assert box.agreement.advice == ()
        assert box.agreement.is_one("shared")


@settings(max_examples=200)
@given(st.data())
def test_readings_of_one_store_never_look_like_two(data: st.DataObject) -> None:
    """However the readings lie, and whatever comes and goes, as long as nothing goes and comes back."""
    events = data.draw(st.lists(st.sampled_from(["r1", "r2", "r3", "add", "remove"]), max_size=60))
    box, store, count = Box(), list[str](), 0
    for now_s, event in enumerate(events):
        if event == "add":
            store.append(f"m{count}")
            count += 1
        elif event == "remove":
            del store[: data.draw(st.integers(0, 2))]
        else:
            box.read(event, store, float(now_s))
    assert box.agreement.advice == ()

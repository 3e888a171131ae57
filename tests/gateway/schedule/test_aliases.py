"""Names of the same weights: who stands for whom, and what a scheduler makes of that."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pytest

from corral.gateway.schedule.aliases import RELOADING, Aliases, Move, Weights, merged
from corral.gateway.wire.shapes import Options
from corral.model import InstalledModel, RequestKind, RouteRequest

GIB = 1 << 30


def model(word: str) -> InstalledModel:
    """``m``, ``m=x`` with the manifest ``x``, ``m!`` a stub."""
    name, _, digest = word.partition("=")
    return InstalledModel(name.strip("!"), digest or f"manifest of {name}", name.endswith("!"), size_bytes=GIB)


def listed(*words: str) -> dict[str, InstalledModel]:
    return {each.name: each for each in map(model, words)}


class Known:
    """Aliases, and what one replica or several list."""

    def __init__(self, **lists: str) -> None:
        self.aliases = Aliases()
        self.lists: dict[str, dict[str, InstalledModel]] = {}
        self.list((), **lists)

    def list(self, apart: Collection[str] = (), **lists: str) -> dict[str, Move] | None:
        self.lists |= {id: listed(*words.split()) for id, words in lists.items()}
        return self.aliases.group(self.lists, apart)

    def know(self, **weights: tuple[str, str] | str) -> dict[str, Move] | None:
        """By digest: blobs, and options."""
        for digest, said in weights.items():
            blobs, options = (said, "") if isinstance(said, str) else said
            self.aliases.know(digest, Weights(tuple(blobs.split()), options))
        return self.aliases.group(self.lists, frozenset())

    @property
    def as_asked(self) -> Mapping[str, str]:
        """What each alias is asked for as."""
        return {name: f"{alias.runner} {alias.options}".strip() for name, alias in sorted(self.aliases.by_name.items())}


def test_names_of_one_manifest_are_one_without_anybody_being_asked() -> None:
    known = Known(a="m=x copy=x n")
    assert known.as_asked == {"m": "copy"}
    assert known.aliases.names("m") == known.aliases.names("copy") == ("copy", "m")
    assert known.aliases.names("n") == ("n",)


def test_names_of_other_manifests_are_once_it_is_known_that_their_weights_are() -> None:
    known = Known(a="m=x made=y n=z")
    assert known.as_asked == {}
    known.know(x="FROM1")
    assert known.as_asked == {}
    known.know(y="FROM1", z="FROM2")
    assert known.as_asked == {"made": "m"}


@pytest.mark.parametrize("blobs", ["FROM1 ADAPTER2", "FROM1 FROM3", "FROM2", ""])
def test_another_adapter_or_projector_is_another_model(blobs: str) -> None:
    known = Known(a="m=x made=y")
    known.know(x="FROM1", y=blobs)
    assert known.as_asked == {}


def test_what_says_nothing_of_its_weights_is_like_its_copies_and_nobody_else() -> None:
    known = Known(a="m=x copy=x n=y")
    known.know(x="", y="")
    assert known.as_asked == {"m": "copy"}


def test_the_name_that_was_there_first_stands_for_all() -> None:
    known = Known(a="m=x")
    assert known.list(a="m=x a-copy=x") == {}
    assert known.as_asked == {"a-copy": "m"}
    known.list(a="m=x a-copy=x z-copy=x")
    assert known.as_asked == {"a-copy": "m", "z-copy": "m"}
    assert known.list(a="a-copy=x z-copy=x") == {"m": Move("a-copy", "", "")}
    known.list(a="m=x a-copy=x z-copy=x")
    assert known.as_asked == {"m": "a-copy", "z-copy": "a-copy"}


def test_of_names_that_came_together_the_first_in_order_stands_for_all() -> None:
    assert Known(b="n=x m=x o=x").as_asked == {"n": "m", "o": "m"}


@pytest.mark.parametrize("other", ["m=x", "copy=x", "m=x n"])
def test_names_that_not_the_same_replicas_have_are_two(other: str) -> None:
    known = Known(a="m=x copy=x", b=other)
    assert known.as_asked == {}
    assert known.list(b="copy=x m=x") is not None
    assert known.as_asked == {"m": "copy"}


def test_those_that_the_same_replicas_have_are_one_beside_one_that_more_have() -> None:
    assert Known(a="m=x n=x o=x", b="m=x").as_asked == {"o": "n"}


def test_a_name_of_two_versions_is_nobodys_alias() -> None:
    known = Known(a="m=x copy=x", b="m=x copy=y")
    assert known.as_asked == {}
    known.list(b="m=x copy=x")
    assert known.as_asked == {"m": "copy"}


@pytest.mark.parametrize("lists", ["m!=x copy!=x", "m:cloud=x copy:120b-cloud=x", "m!=x copy=x"])
def test_what_runs_in_the_cloud_is_nobodys_alias(lists: str) -> None:
    assert Known(a=lists).as_asked == {}


def test_names_without_a_digest_are_nobodys_alias() -> None:
    aliases = Aliases()
    aliases.group({"a": {name: InstalledModel(name, "") for name in "mn"}}, frozenset())
    assert aliases.by_name == {}


def test_names_that_stand_apart_are_nobodys_alias() -> None:
    known = Known(a="m=x copy=x third=x")
    known.list({"copy"})
    assert known.as_asked == {"third": "m"}


# ---- options that a model's file names


def test_what_the_file_of_an_alias_names_is_asked_for_beside_what_the_client_names() -> None:
    known = Known(a="m=x made=y")
    known.know(x="FROM1", y=("FROM1", "num_ctx=8192,num_gpu=3"))
    ask = known.aliases.of
    assert known.as_asked == {"made": "m num_ctx=8192,num_gpu=3"}
    request = RouteRequest(RequestKind.INFERENCE, "made", "num_ctx=512,shift=0", 7, "t", rank=2, keep_alive_s=5.0)
    made = RouteRequest(
        RequestKind.INFERENCE, "m", "num_ctx=512,num_gpu=3,shift=0", 7, "t", rank=2, alias="made", keep_alive_s=5.0
    )
    assert ask(request) == made
    assert (made.asked, request.asked) == ("made", "made")
    assert ask(RouteRequest(RequestKind.INFERENCE, "made")).key == "m num_ctx=8192,num_gpu=3"
    assert ask(RouteRequest(RequestKind.INFERENCE, "m", "num_ctx=512")).key == "m num_ctx=512"


def test_one_without_options_stands_for_all_others() -> None:
    known = Known(a="b=x c=y d=z")
    known.know(x=("FROM1", "num_ctx=1"), y=("FROM1", "num_ctx=2"), z="FROM1")
    assert known.as_asked == {"b": "d num_ctx=1", "c": "d num_ctx=2"}


def test_where_all_have_options_those_with_the_same_are_one() -> None:
    known = Known(a="b=x c=y d=z e=z")
    known.know(x=("FROM1", "num_ctx=1"), y=("FROM1", "num_ctx=2"), z=("FROM1", "num_ctx=1"))
    assert known.as_asked == {"d": "b", "e": "b"}
    assert known.aliases.of(RouteRequest(RequestKind.INFERENCE, "d", "num_gpu=1")).key == "b num_gpu=1"


def test_signatures_are_merged_in_the_order_that_requests_have() -> None:
    assert Options.__struct_fields__[:-1] == RELOADING
    every = ",".join(f"{name}=1" for name in (*RELOADING, "shift"))
    assert merged(every, "") == merged("", every) == every
    assert merged(",".join(reversed(every.split(","))), "num_gpu=2") == every.replace("num_gpu=1", "num_gpu=2")


# ---- what was in memory


def test_what_turned_out_to_be_an_alias_is_in_memory_under_the_name_of_its_runner() -> None:
    known = Known(a="m=x made=y")
    moves = known.know(x="FROM1", y=("FROM1", "num_ctx=8"))
    assert moves == {"made": Move("m", "num_ctx=8", "")}
    assert moves["made"].signature("") == "num_ctx=8"
    assert moves["made"].signature("num_ctx=9,shift=0") == "num_ctx=9,shift=0"
    assert moves["made"].signature(None) is None


def test_where_the_runner_is_deleted_its_memory_is_that_of_who_is_left() -> None:
    known = Known(a="m=x made=y third=y")
    known.know(x="FROM1", y=("FROM1", "num_ctx=8"))
    moves = known.list(a="made=y third=y")
    assert moves == {"m": Move("made", "", "num_ctx=8")}
    assert moves["m"].signature("num_ctx=8") is None, "nobody knows what of it is the file's own"


def test_where_the_runner_has_another_version_its_memory_is_that_of_who_is_left() -> None:
    known = Known(a="m=x copy=x")
    known.list(a="copy=x")
    known.list(a="copy=x m=x")
    assert known.as_asked == {"m": "copy"}
    assert known.list(a="copy=y m=x") == {"copy": Move("m", "", "")}
    assert known.as_asked == {}


def test_where_an_alias_has_another_version_nothing_moves() -> None:
    known = Known(a="m=x")
    known.list(a="m=x copy=x")
    assert known.list(a="m=x copy=y") == {}
    assert known.as_asked == {}


def test_where_the_runner_stands_apart_its_memory_is_that_of_the_others_until_it_is_back() -> None:
    known = Known(a="m=x")
    known.list(a="m=x n=x o=x")
    assert known.list({"m"}) == {"m": Move("n", "", "")}
    assert known.as_asked == {"o": "n"}
    assert known.list() == {"n": Move("m", "", "")}
    assert known.as_asked == {"n": "m", "o": "m"}


def test_where_those_who_are_left_are_several_memory_stays_what_it_was() -> None:
    known = Known(a="m=x b=y c=z")
    known.know(x="FROM1", y=("FROM1", "num_ctx=1"), z=("FROM1", "num_ctx=2"))
    assert known.list(a="b=y c=z") == {}
    assert known.as_asked == {}


def test_nothing_is_said_where_nobody_is_called_otherwise() -> None:
    known = Known(a="m=x copy=x")
    assert known.list() is None
    assert known.list(a="m=x copy=x n o") is None
    assert known.list({"n"}) is None
    assert known.know(x="FROM1") is None


# ---- who is to be asked


def sized(**sizes: int | None) -> Aliases:
    """By name; each has a manifest of its own."""
    aliases = Aliases()
    models = {name: InstalledModel(name, f"of {name}", size_bytes=size) for name, size in sizes.items()}
    aliases.group({"a": models, "b": models}, frozenset())
    return aliases


def wanted(aliases: Aliases) -> list[str]:
    return sorted(unknown.name for unknown in aliases.unknown)


def test_only_models_of_about_the_same_size_are_worth_a_question() -> None:
    aliases = sized(m=GIB, made=GIB + 4000, n=2 * GIB, o=3 * GIB, p=3 * GIB + 1)
    assert wanted(aliases) == ["m", "made", "o", "p"]
    assert {unknown.replicas for unknown in aliases.unknown} == {("a", "b")}
    assert {unknown.digest for unknown in aliases.unknown} == {"of m", "of made", "of o", "of p"}


def test_a_copy_is_no_reason_to_ask() -> None:
    known = Known(a="m=x copy=x")
    assert known.aliases.unknown == ()


def test_one_of_unknown_size_may_be_like_any() -> None:
    assert wanted(sized(m=None)) == []
    assert wanted(sized(m=None, n=GIB)) == ["m", "n"]


def test_what_is_known_is_not_asked_again_until_it_was_forgotten() -> None:
    known = Known(a="m=x made=y")
    assert wanted(known.aliases) == ["m", "made"]
    known.know(x="FROM1")
    assert wanted(known.aliases) == ["made"]
    known.know(y="FROM1")
    assert wanted(known.aliases) == []
    known.list(a="m=x")
    known.list(a="m=x made=y")
    assert wanted(known.aliases) == ["made"]


def test_nobody_is_asked_what_cannot_be_an_alias() -> None:
    known = Known(a="m=x made=y far!=z", b="m=y")
    assert wanted(known.aliases) == []
    known.list({"made"}, b="")
    assert wanted(known.aliases) == []


def test_what_is_known_of_models_that_nobody_lists_is_forgotten() -> None:
    known = Known(a="m=x")
    for number in range(1000):
        known.know(**{f"d{number}": "FROM1"})
    assert len(known.aliases._weights) <= 1

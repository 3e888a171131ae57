"""What is found in a store that no model needs, and what is removed of it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from corral.gateway.store import garbage
from corral.gateway.store.garbage import GRACE_S, Findings, Kind, Removal
from corral.gateway.store.references import MAX_MANIFEST_BYTES, Unreadable

NOW_S = 2_000_000_000.0
OLD_S = NOW_S - 2 * GRACE_S
LIBRARY = "registry.ollama.ai/library"


class Shelf:
    """A store in a folder, as an Ollama would leave it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for part in ("blobs", "manifests"):
            (folder / part).mkdir(parents=True)

    def blob(self, content: bytes, at_s: float = OLD_S) -> str:
        """The name of the blob's file."""
        name = f"sha256-{hashlib.sha256(content).hexdigest()}"
        self.file(f"blobs/{name}", content, at_s)
        return name

    def manifest(self, model: str, *blobs: str, at_s: float = OLD_S, root: str = "manifests") -> bytes:
        """``model``: HOST/NAMESPACE/MODEL/TAG; the first blob is its config."""
        config, *layers = ({"digest": blob.replace("-", ":"), "size": 1} for blob in blobs)
        content = json.dumps({"schemaVersion": 2, "config": config, "layers": layers}).encode()
        self.file(f"{root}/{model}", content, at_s)
        return content

    def file(self, path: str, content: bytes, at_s: float = OLD_S) -> Path:
        place = self.folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        os.utime(place, (at_s, at_s))
        return place

    def names(self) -> set[str]:
        return set(os.listdir(self.folder / "blobs"))

    def survey(self, min_age_s: float = GRACE_S, *, with_previous: bool = True) -> Findings:
        return garbage.survey(self.folder, min_age_s, NOW_S, with_previous=with_previous)

    def remove(self, min_age_s: float = GRACE_S, is_stopped: Callable[[], bool] = lambda: False) -> Removal:
        return garbage.remove(self.folder, min_age_s, lambda: NOW_S, is_stopped)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "models")


def test_blobs_that_no_manifest_names_are_found_with_their_sizes(shelf: Shelf) -> None:
    kept = [shelf.blob(b"config"), shelf.blob(b"weights")]
    shelf.manifest(f"{LIBRARY}/m/latest", *kept)
    unused = shelf.blob(b"x" * 5000, OLD_S - 10)
    [waste] = shelf.survey().waste
    assert (waste.kind, waste.name, waste.files) == (Kind.BLOB, f"blobs/{unused}", (f"blobs/{unused}",))
    assert (waste.size_bytes, waste.age_s) == (5000, 2 * GRACE_S + 10)
    assert shelf.names() == {*kept, unused}, "a look changes nothing"
    assert [each.name for each in shelf.remove().removed] == [f"blobs/{unused}"]
    assert shelf.names() == set(kept)
    assert shelf.survey() == Findings((), 0, 0)


def test_a_partial_download_is_one_thing_as_old_as_its_youngest_part(shelf: Shelf) -> None:
    done, under_way = f"sha256-{'a' * 64}-partial", f"sha256-{'b' * 64}-partial"
    for at, at_s in enumerate((OLD_S, OLD_S, OLD_S + 60)):
        shelf.file(f"blobs/{done}-{at}", b"{}", at_s)
    with open(shelf.file(f"blobs/{done}", b"half"), "r+b") as sparse:
        sparse.truncate(1 << 30)
    os.utime(shelf.folder / "blobs" / done, (OLD_S, OLD_S))
    shelf.file(f"blobs/{under_way}", b"half")
    shelf.file(f"blobs/{under_way}-0", b"{}")
    shelf.file(f"blobs/{under_way}-1", b"{}", NOW_S - 10)
    findings = shelf.survey()
    [waste] = findings.waste
    assert (waste.kind, waste.name, waste.age_s) == (Kind.DOWNLOAD, f"blobs/{done}", 2 * GRACE_S - 60)
    assert sorted(waste.files) == sorted(f"blobs/{done}{end}" for end in ("", "-0", "-1", "-2"))
    assert waste.size_bytes < 1 << 20, "holes free nothing"
    assert findings.young_files == 3
    shelf.remove()
    assert shelf.names() == {under_way, f"{under_way}-0", f"{under_way}-1"}


def test_what_is_younger_than_the_grace_stays(shelf: Shelf) -> None:
    young, old = shelf.blob(b"young", NOW_S - 100), shelf.blob(b"old", NOW_S - 200)
    future = shelf.blob(b"of a clock that is ahead", NOW_S + 500)
    assert shelf.survey().waste == ()
    assert [waste.name for waste in shelf.survey(150).waste] == [f"blobs/{old}"]
    assert shelf.survey(150).young_files == 2
    shelf.remove(150)
    assert shelf.names() == {young, future}


def test_only_files_that_are_named_as_blobs_are_touched(shelf: Shelf, tmp_path: Path) -> None:
    outside = tmp_path / "precious"
    outside.write_bytes(b"keep me")
    os.utime(outside, (OLD_S, OLD_S))
    names = ["README", ".nfs0001", "sha256-123", f"sha256-{'a' * 63}", f"sha256-{'a' * 64}.bak", f"x-sha256-{'a' * 64}"]
    names += [f"sha256:{'a' * 64}", f"sha256-{'g' * 64}", f"sha256-{'a' * 64}-partial-x", f"sha256-{'a' * 64}\n"]
    for name in names:
        shelf.file(f"blobs/{name}", b"?")
    (shelf.folder / "blobs" / f"sha256-{'b' * 64}").mkdir()
    (shelf.folder / "blobs" / f"sha256-{'c' * 64}").symlink_to(outside)
    os.mkfifo(shelf.folder / "blobs" / f"sha256-{'d' * 64}")
    before = shelf.names()
    assert shelf.survey(0).waste == ()
    assert shelf.remove(0) == Removal()
    assert shelf.names() == before
    assert outside.read_bytes() == b"keep me"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"config": {"digest": "sha256:12", "layers": [',
        b"[]",
        b'"text"',
        b"{}",
        b'{"config": {}}',
        b'{"layers": 7}',
        b"\xff\xfe",
        b"[" * 100_000,
        b" " * (MAX_MANIFEST_BYTES + 1),
    ],
    ids=["empty", "cut off", "a list", "a text", "no layers", "a config alone", "a number", "bytes", "deep", "long"],
)
def test_nothing_is_removed_while_a_manifest_cannot_be_read_and_it_is_named(shelf: Shelf, content: bytes) -> None:
    unused = shelf.blob(b"may be a layer")
    shelf.manifest(f"{LIBRARY}/good/latest", shelf.blob(b"config"))
    path = shelf.file(f"manifests/{LIBRARY}/bad/latest", content)
    for work in (shelf.survey, shelf.remove):
        with pytest.raises(Unreadable) as caught:
            work()
        assert str(path) in str(caught.value)
    assert unused in shelf.names()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_manifest_that_is_closed_to_this_user_is_unreadable(shelf: Shelf) -> None:
    shelf.blob(b"unused")
    shelf.manifest(f"{LIBRARY}/m/latest", shelf.blob(b"config"))
    (shelf.folder / "manifests" / LIBRARY / "m" / "latest").chmod(0)
    with pytest.raises(Unreadable, match="m/latest: Permission denied"):
        shelf.remove()


def test_no_link_leads_out_of_the_store(shelf: Shelf, tmp_path: Path) -> None:
    elsewhere = Shelf(tmp_path / "elsewhere")
    blob = elsewhere.blob(b"another store's")
    elsewhere.manifest(f"{LIBRARY}/m/latest", blob)
    shelf.blob(b"unused")
    link = shelf.folder / "manifests" / "hub"
    for target in (elsewhere.folder / "manifests", elsewhere.folder / "manifests" / LIBRARY / "m" / "latest"):
        link.symlink_to(target)
        with pytest.raises(Unreadable, match=r"manifests/hub is a link to elsewhere \(/.*\), which is not followed"):
            shelf.remove()
        link.unlink()
    (shelf.folder / "blobs").rename(shelf.folder / "blobs.old")
    (shelf.folder / "blobs").symlink_to(elsewhere.folder / "blobs")
    with pytest.raises(Unreadable, match="blobs: is a link, which is not followed"):
        shelf.remove()
    assert elsewhere.names() == {blob}


def test_the_store_itself_may_be_reached_by_a_link(shelf: Shelf, tmp_path: Path) -> None:
    unused = shelf.blob(b"unused")
    (tmp_path / "link").symlink_to(shelf.folder)
    removal = garbage.remove(tmp_path / "link", GRACE_S, lambda: NOW_S, lambda: False)
    assert [waste.name for waste in removal.removed] == [f"blobs/{unused}"]


@pytest.mark.parametrize("missing", ["manifests", "blobs", "."])
def test_a_folder_that_is_no_store_is_said_to_be_none(shelf: Shelf, missing: str) -> None:
    shelf.blob(b"unused")
    (shelf.folder / missing).rename(shelf.folder.parent / "away")
    with pytest.raises(Unreadable) as caught:
        shelf.remove()
    assert str(shelf.folder) in str(caught.value)


def test_links_to_manifests_among_the_blobs_count_as_newer_ollamas_mean_them(shelf: Shelf) -> None:
    config, weights = shelf.blob(b"config"), shelf.blob(b"weights")
    manifest = shelf.blob(shelf.manifest("x/y/z/t", config, weights))
    child = shelf.blob(shelf.manifest("x/y/z/t", shelf.blob(b"child config"), shelf.blob(b"child weights")))
    reference = {"mediaType": "application/vnd.docker.distribution.manifest.v2+json", "digest": child.replace("-", ":")}
    parent = shelf.blob(json.dumps({"schemaVersion": 2, "manifests": [reference]}).encode())
    (shelf.folder / "manifests/x/y/z/t").unlink()
    folder = shelf.folder / "manifests-v2" / "ollama.com" / "library" / "m"
    folder.mkdir(parents=True)
    (folder / "plain").symlink_to(f"../../../../blobs/{manifest}")
    (folder / "listed").symlink_to(shelf.folder / "blobs" / parent)
    unused = shelf.blob(b"unused")
    assert [waste.name for waste in shelf.survey().waste] == [f"blobs/{unused}"]
    (shelf.folder / "blobs" / child).unlink()
    with pytest.raises(Unreadable, match=rf"m/listed: its manifest blobs/{child} is missing"):
        shelf.remove()
    (folder / "listed").unlink()
    shelf.remove()
    assert shelf.names() == {config, weights, manifest}


def test_a_manifest_that_is_a_copy_of_a_blob_keeps_the_blob(shelf: Shelf) -> None:
    content = shelf.manifest("ollama.com/library/m/latest", shelf.blob(b"config"), root="manifests-v2")
    shelf.blob(content)
    assert shelf.survey().waste == ()


def test_digests_count_wherever_and_however_they_are_spelled(shelf: Shelf) -> None:
    blobs = [shelf.blob(content) for content in (b"1", b"2", b"3")]
    upper = blobs[1].replace("sha256-", "").upper()
    manifest = {"Layers": None, "runner": {"deep": [{"x": blobs[0]}, f"sha256:{upper}"]}, "config": {}}
    text = json.dumps(manifest)[:-1] + ', "escaped": "sha256\\u003a' + blobs[2][7:] + '"}'
    shelf.file(f"manifests/{LIBRARY}/m/latest", text.encode())
    assert shelf.survey().waste == ()


def test_an_old_version_that_the_gateway_left_goes_with_what_it_alone_needs(shelf: Shelf) -> None:
    shared, kept, gone = shelf.blob(b"config"), shelf.blob(b"new"), shelf.blob(b"old")
    shelf.manifest(f"{LIBRARY}/m/latest", shared, kept)
    previous = "registry.ollama.ai/corral-previous/00000000000000ff/latest"
    shelf.manifest(previous, shared, gone)
    assert shelf.survey(with_previous=False).waste == ()
    kinds = {waste.name: waste.kind for waste in shelf.survey().waste}
    assert kinds == {f"manifests/{previous}": Kind.PREVIOUS, f"blobs/{gone}": Kind.BLOB}
    assert len(shelf.remove().removed) == 2
    assert shelf.names() == {shared, kept}
    assert os.listdir(shelf.folder / "manifests" / "registry.ollama.ai") == ["library"]


def test_an_old_version_that_is_younger_than_the_grace_keeps_its_blobs(shelf: Shelf) -> None:
    shelf.manifest("registry.ollama.ai/corral-previous/01/latest", shelf.blob(b"old"), at_s=NOW_S - 5)
    assert shelf.survey().waste == ()


def test_files_with_another_name_free_nothing(shelf: Shelf, tmp_path: Path) -> None:
    unused = shelf.blob(b"x" * 5000)
    os.link(shelf.folder / "blobs" / unused, tmp_path / "backup")
    assert [waste.size_bytes for waste in shelf.survey().waste] == [0]


def test_what_a_model_needs_by_now_is_not_removed(shelf: Shelf) -> None:
    """A pull past the gateway found the blob there and named it, after the look and before the removal."""
    first, second = sorted(shelf.blob(content) for content in (b"one", b"two"))

    def pull() -> bool:
        shelf.manifest(f"{LIBRARY}/m/latest", second)
        return False

    removal = shelf.remove(is_stopped=pull)
    assert [waste.name for waste in removal.removed] == [f"blobs/{first}"]
    assert removal.failed == [(f"blobs/{second}", "a model needs it now")]
    assert shelf.names() == {second}


def test_a_manifest_that_becomes_unreadable_stops_the_removal(shelf: Shelf) -> None:
    shelf.blob(b"one")

    def write_half() -> bool:
        shelf.file(f"manifests/{LIBRARY}/m/latest", b'{"layers": [')
        return False

    removal = shelf.remove(is_stopped=write_half)
    assert (removal.removed, removal.failed) == ([], [])
    assert removal.stopped is not None
    assert "m/latest" in removal.stopped
    assert len(shelf.names()) == 1


def test_a_file_that_changed_since_it_was_found_stays(shelf: Shelf) -> None:
    name = f"sha256-{'a' * 64}-partial"
    shelf.file(f"blobs/{name}", b"half")

    def resume() -> bool:
        shelf.file(f"blobs/{name}", b"half and more", NOW_S)
        return False

    removal = shelf.remove(is_stopped=resume)
    assert removal.failed == [(f"blobs/{name}", "it has changed meanwhile")]
    assert shelf.names() == {name}


def test_one_file_that_cannot_be_removed_does_not_keep_the_others(shelf: Shelf) -> None:
    first, second = sorted(shelf.blob(content) for content in (b"one", b"two"))

    def replace_by_folder() -> bool:
        place = shelf.folder / "blobs" / first
        if place.is_file():
            place.unlink()
            place.mkdir()
        return False

    removal = shelf.remove(is_stopped=replace_by_folder)
    assert [file for file, _ in removal.failed] == [f"blobs/{first}"]
    assert [waste.name for waste in removal.removed] == [f"blobs/{second}"]


def test_it_stops_when_it_is_told_to(shelf: Shelf) -> None:
    for content in (b"one", b"two", b"three"):
        shelf.blob(content)
    asked: list[int] = []

    def after_the_first() -> bool:
        asked.append(1)
        return len(asked) > 1

    removal = shelf.remove(is_stopped=after_the_first)
    assert (len(removal.removed), removal.stopped) == (1, "it was told to stop")
    assert len(shelf.names()) == 2


def test_whatever_the_store_holds_no_needed_blob_is_ever_removed(tmp_path: Path) -> None:
    rng = random.Random(5)
    for at in range(60):
        shelf = Shelf(tmp_path / str(at))
        blobs = [shelf.blob(b"%d" % number, NOW_S - rng.choice((10, 2 * GRACE_S))) for number in range(8)]
        needed: set[str] = set()
        for model in range(rng.randrange(5)):
            layers = rng.sample(blobs, rng.randrange(1, 5))
            shelf.manifest(f"{LIBRARY}/m{model}/latest", *layers)
            needed |= set(layers)
        old = {name for name in blobs if (shelf.folder / "blobs" / name).stat().st_mtime == OLD_S}
        shelf.remove()
        assert shelf.names() == set(blobs) - (old - needed)


def test_hundreds_of_models_and_unused_blobs_are_dealt_with_quickly(shelf: Shelf) -> None:
    for at in range(150):
        shelf.manifest(f"{LIBRARY}/m{at}/latest", shelf.blob(b"config %d" % at))
        shelf.blob(b"unused %d" % at)
    began_s = time.monotonic()
    assert len(shelf.remove().removed) == 150
    assert time.monotonic() - began_s < 20

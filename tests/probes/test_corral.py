"""The report of a Corral: read whole and sound, or not at all."""

from __future__ import annotations

from typing import Any

import pytest

from corral.model import Replica, TreeLoad
from corral.probes.corral import CorralProbe
from corral.probes.ollama import Miss, probe_session
from tests.probes.fake_ollama import Answer, document, fake_ollama, page

LEAF: dict[str, Any] = {"id": "gpu0", "slots": 4, "in_flight": {"m:latest": 1}, "weight": 2.0, "new_key": 1}


def tree(*leaves: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"gateway": "0123abcd", "replicas": list(leaves), **more}


async def read(answer: Answer) -> TreeLoad | Miss:
    async with fake_ollama() as ollama, probe_session() as session:
        ollama.answers["/load?via=ffffffff"] = answer
        replica = Replica("n", "127.0.0.1", 1, admin=("127.0.0.1", ollama.replica().port))
        return await CorralProbe(session, replica, "ffffffff").tree(2.0)


async def test_a_report_is_read_from_the_admin_port_and_new_keys_are_passed_over() -> None:
    found = await read(document(tree(LEAF, gateways=["89abcdef"])))
    assert isinstance(found, TreeLoad)
    assert (found.gateway, found.gateways, found.replicas[0].slots) == ("0123abcd", ("89abcdef",), 4)
    assert found.replicas[0].in_flight == {"m:latest": 1}


@pytest.mark.parametrize(
    "nonsense",
    [
        {"gateway": "not a run", "replicas": []},
        tree(LEAF, LEAF),
        tree(LEAF | {"id": "a\r\nHost: evil"}),
        tree(LEAF | {"id": "../gpu0"}),
        tree(LEAF | {"weight": 0}),
        tree(LEAF | {"slots": 0}),
        tree(LEAF | {"in_flight": {"m:latest": -1}}),
        tree(LEAF | {"wait_s": -1.0}),
        {"replicas": []},
    ],
)
async def test_a_report_that_makes_no_sense_is_none(nonsense: dict[str, Any]) -> None:
    assert await read(document(nonsense)) is Miss.NONSENSE


async def test_a_corral_that_has_no_such_page_yet_is_told_apart() -> None:
    assert await read(page(b"{}", status="404 Not Found")) is Miss.ABSENT

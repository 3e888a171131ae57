"""What gateways tell each other in headers: the way that a request came, and where it is thought to go."""

from __future__ import annotations

import pytest

from corral.errors import ClientError
from corral.gateway.wire.admission import MOST_HOPS, refuse_loops
from corral.gateway.wire.heads import request_head
from corral.gateway.wire.request_head import RequestHead, parse_request_head
from corral.gateway.wire.response_head import parse_response_head
from corral.model import Replica

OLLAMA = Replica("a", "10.0.0.1", 11434)
CORRAL = Replica("n", "10.0.0.1", 11434, admin=("10.0.0.1", 11435))
FOUND = Replica("10.0.0.1", "10.0.0.1", 11434, found_by="dns nodes")
RUN = b"0123abcd"


def head(*lines: bytes) -> RequestHead:
    return parse_request_head(b"\r\n".join((b"POST /api/chat HTTP/1.1", b"Host: x", *lines, b"", b"")))


def sent(request: RequestHead, replica: Replica, leaf: str = "") -> list[bytes]:
    lines = request_head(request, replica, 2, RUN, leaf).split(b"\r\n")
    return [line for line in lines if line.lower().startswith(b"x-corral")]


def test_an_ollama_is_told_nothing() -> None:
    assert sent(head(), OLLAMA) == []


def test_a_corral_is_told_the_way_and_where_it_is_thought_to_go() -> None:
    assert sent(head(), CORRAL, "gpu0") == [b"x-corral-via: 0123abcd", b"x-corral-prefer: gpu0"]


def test_what_was_found_is_told_the_way_since_it_may_be_anything() -> None:
    assert sent(head(), FOUND) == [b"x-corral-via: 0123abcd"]


def test_the_way_grows_and_is_passed_on_even_to_an_ollama() -> None:
    assert sent(head(b"X-Corral-Via: ffffffff,eeeeeeee"), OLLAMA) == [b"x-corral-via: ffffffff,eeeeeeee,0123abcd"]


def test_what_a_client_makes_up_is_no_way_and_is_not_passed_on() -> None:
    request = head(b"X-Corral-Via: anything at all", b"X-Corral-Prefer: ../../etc")
    assert (request.via, request.prefer) == (b"", b"")
    assert sent(request, OLLAMA) == []


def test_a_request_that_was_here_before_is_refused() -> None:
    refuse_loops(b"ffffffff", RUN)
    with pytest.raises(ClientError, match="here before") as caught:
        refuse_loops(b"ffffffff,0123abcd,eeeeeeee", RUN)
    assert caught.value.status == 508


def test_a_request_that_came_through_too_many_is_refused() -> None:
    runs = [b"%08x" % number for number in range(1, MOST_HOPS + 1)]
    refuse_loops(b",".join(runs[:-1]), RUN)
    with pytest.raises(ClientError, match="only be a loop"):
        refuse_loops(b",".join(runs), RUN)


@pytest.mark.parametrize(
    ("said", "read"), [(b"gpu0", b"gpu0"), (b"n0/gpu-1", b"n0/gpu-1"), (b"a b", b""), (b"/gpu0", b""), (b"x" * 65, b"")]
)
def test_an_answer_tells_where_it_is_from_if_that_can_be_a_name(said: bytes, read: bytes) -> None:
    response = parse_response_head(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Corral-Replica: %b\r\n\r\n" % said)
    assert response.replica == read
    assert b"corral" not in response.forward.lower()

"""Views of replicas for the tests of policies: short to write by hand, and drawn by hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from corral.model import ReplicaView, RequestKind, RouteRequest

MODELS = ("llama3.1:8b", "qwen3:4b", "gemma3:1b")
REQUEST = RouteRequest(RequestKind.INFERENCE, MODELS[0])


def view(
    id: str,
    *,
    weight: float = 1.0,
    inflight: int = 0,
    loaded: set[str] | None = None,
    turn: float = 0.0,
) -> ReplicaView:
    """``loaded`` None: not known, as in the view itself."""
    resident = None if loaded is None else frozenset(loaded)
    return ReplicaView(id, weight, slots=99, inflight=inflight, inflight_model=inflight, loaded=resident, turn=turn)


views = st.builds(
    view,
    st.text("abcdefgh", min_size=1, max_size=4),
    weight=st.sampled_from((0.25, 0.5, 1.0, 1.6, 3.0, 8.0)),
    inflight=st.integers(0, 40),
    loaded=st.none() | st.sets(st.sampled_from(MODELS)),
    turn=st.sampled_from((0.0, 0.5, 1.0, 7.25)),
)

candidate_lists = st.lists(views, min_size=1, max_size=16, unique_by=lambda view: view.id)

requests = st.builds(
    RouteRequest,
    st.sampled_from((RequestKind.INFERENCE, RequestKind.CLOUD, RequestKind.SHOW)),
    st.sampled_from(MODELS),
) | st.builds(RouteRequest, st.just(RequestKind.OTHER), st.none())

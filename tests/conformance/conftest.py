"""The fixture ``target`` that every conformance test takes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.targets import Target, kinds, target_of


@pytest.fixture(scope="session", params=kinds())
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Each target in turn; one server for the whole suite."""
    with target_of(request.param) as found:
        yield found


@pytest.fixture
def target_url(target: Target) -> str:
    return target.url


@pytest.fixture
def emulated(target: Target) -> Target:
    """Only where the target is an emulator: what a real model cannot be made to do, or must not."""
    if not target.emulated:
        pytest.skip("only asserted of the emulator")
    return target

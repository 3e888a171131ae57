"""What all tests share: generated cases are the same in every run, a slow machine is no failure, and under ``-n`` the
processes share out whole files, whose fixtures are then made once, and whole targets of the conformance suite."""

from __future__ import annotations

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

from tests.conformance.targets import kind_in

settings.register_profile("corral", deadline=None, derandomize=True)
settings.load_profile("corral")


class ByFileOrTarget(LoadFileScheduling):  # type: ignore[misc]
    """Hands the tests of one file, or of one target, to one process."""

    def _split_scope(self, nodeid: str) -> str:
        return kind_in(nodeid) or str(super()._split_scope(nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByFileOrTarget:
    return ByFileOrTarget(config, log)

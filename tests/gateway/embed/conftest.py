"""The fixtures of these tests."""

from tests.gateway.embed.stage import stage
from tests.gateway.wire.conftest import pytest_asyncio_loop_factories, start

__all__ = ["pytest_asyncio_loop_factories", "stage", "start"]

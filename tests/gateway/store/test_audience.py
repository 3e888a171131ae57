"""Those who wait for one operation."""

from __future__ import annotations

import asyncio

from corral.gateway.store import audience as module
from corral.gateway.store.audience import Audience, Listener
from corral.gateway.store.lines import layer_line, read_line
from corral.gateway.store.said import Said

END = Said(200, b'{"status":"success"}\n', ok=True, is_line=True)


def status(text: str) -> bytes:
    return b'{"status":"%b"}\n' % text.encode()


def tell(audience: Audience, *lines: str | int) -> None:
    """A status, or how far the only layer is."""
    for line in lines:
        audience.tell(layer_line("pulling d", "d", 9, line) if isinstance(line, int) else read_line(status(line)))


def raw(*lines: str | int) -> list[bytes]:
    return [layer_line("pulling d", "d", 9, line).raw if isinstance(line, int) else status(line) for line in lines]


async def all_of(listener: Listener) -> list[bytes]:
    async with asyncio.timeout(5):
        return [line async for line in listener]


async def test_who_listens_hears_every_line() -> None:
    audience = Audience()
    listener = audience.join()
    lines: list[str | int] = ["manifest", 1, 2, 9, "verifying"]

    listening = asyncio.create_task(all_of(listener))
    for line in lines:
        tell(audience, line)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    audience.end(END)
    assert await listening == raw(*lines)
    assert await listener.said() is END


async def test_who_is_slow_hears_the_latest_of_each_thing() -> None:
    audience = Audience()
    listener = audience.join()
    tell(audience, "manifest", *range(9), 9, "verifying")
    audience.end(END)
    assert await all_of(listener) == raw("manifest", 9, "verifying")


async def test_who_comes_late_hears_how_far_it_is() -> None:
    audience = Audience()
    tell(audience, "manifest", 1, 5)
    late = audience.join()
    tell(audience, 6, "verifying")
    audience.end(END)
    assert await all_of(late) == raw("manifest", 6, "verifying")
    assert await all_of(audience.join()) == raw("manifest", 6, "verifying")


async def test_who_comes_after_it_was_begun_anew_hears_nothing_of_before() -> None:
    audience = Audience()
    early = audience.join()
    tell(audience, "manifest", 5)
    audience.anew()
    tell(audience, "manifest", 2)
    late = audience.join()
    audience.end(END)
    assert await all_of(late) == raw("manifest", 2)
    assert await all_of(early) == raw("manifest", 2)


async def test_who_left_is_told_nothing_and_not_counted() -> None:
    audience = Audience()
    listener = audience.join()
    assert len(audience) == 1
    audience.leave(listener)
    audience.leave(listener)
    assert len(audience) == 0
    tell(audience, "manifest")
    listener.end(END)
    assert await all_of(listener) == []


async def test_what_is_kept_is_bounded() -> None:
    audience = Audience()
    listener = audience.join()
    tell(audience, *map(str, range(module._MOST_LINES + 100)))
    audience.end(END)
    heard = await all_of(listener)
    assert len(heard) == module._MOST_LINES
    assert heard[-1] == status(str(module._MOST_LINES + 99))


async def test_the_end_can_be_waited_for_without_the_lines() -> None:
    audience = Audience()
    waiting = asyncio.create_task(audience.join().said())
    tell(audience, "manifest")
    await asyncio.sleep(0)
    assert not waiting.done()
    audience.end(END)
    assert await waiting is END

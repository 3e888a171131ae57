"""Whatever clients and faults do, nothing is left behind and what looks complete is complete."""

from __future__ import annotations

import asyncio
import json
import time
from random import Random

from tests.conformance.raw import ask
from tests.emulator.child import EmulatorProcess, emulator

_REQUESTS = 600
_AT_ONCE = 40
_MODELS = ("llama3.2:1b", "llama3.2:3b")


async def _one(child: EmulatorProcess, random: Random) -> bool:
    """One request, perhaps left early; whether a stream that ended cleanly had its last line."""
    tokens = random.randint(1, 60)
    body = json.dumps(
        {
            "model": random.choice(_MODELS),
            "messages": [{"role": "user", "content": str(random.random())}],
            "options": {"num_predict": tokens},
        }
    ).encode()
    reader, writer = await asyncio.open_connection(child.host, child.port)
    head = f"POST /api/chat HTTP/1.1\r\nHost: {child.host}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    patience_s = random.choice([None, None, None, 0.0, 0.01, 0.1])
    try:
        writer.write(head.encode() + body)
        answer = await asyncio.wait_for(reader.read(-1), patience_s)
    except (TimeoutError, ConnectionError):
        return True
    finally:
        writer.transport.abort()
    complete = answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"0\r\n\r\n")
    return not complete or b'"done":true' in answer or b'{"error"' in answer


async def _soak(child: EmulatorProcess) -> list[bool]:
    random, free = Random(7), asyncio.Semaphore(_AT_ONCE)

    async def limited() -> bool:
        async with free:
            return await _one(child, random)

    return await asyncio.gather(*[limited() for _ in range(_REQUESTS)])


async def test_random_leaving_and_random_faults_leave_nothing_behind() -> None:
    kinds = ("crash-runner", "reset-mid-stream", "truncate", "error-mid-stream", "oom", "reset", "busy", "bad-chunk")
    faults = [option for kind in kinds for option in ("--fault", f"{kind},count=all,ratio=0.01")]
    models = [option for name in _MODELS for option in ("--model", name)]
    options = (*models, *faults, "--speed", "50", "--parallel", "4", "--max-loaded", "1", "--context-length", "4096")
    with emulator(*options) as child:
        assert all(await _soak(child))
        ask(child.url, "DELETE", "/emulator/fault")
        end = time.monotonic() + 20
        while True:
            found = ask(child.url, "GET", "/emulator/stats").json()
            left = [found[name] for name in ("active_streams", "slots_held", "pending", "waiting_for_slot")]
            if not any(left):
                break
            assert time.monotonic() < end, found
            time.sleep(0.02)
        assert found["completed"] > _REQUESTS / 4
        assert found["connections"] == 1
        assert max(found["max_concurrent"].values()) <= 4

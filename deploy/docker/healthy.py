"""The health check of the container: exit code 0 where what runs in it answers 200.

Without an argument the gateway's admin port is asked whether the process is alive; `healthy.py /readyz` asks whether a
request could be served, and `healthy.py 11434 /api/version` what listens on that port.
"""

from __future__ import annotations

import http.client
import os
import sys

TIMEOUT_S = 4.0


def main(arguments: list[str]) -> int:
    admin = os.environ.get("CORRAL_ADMIN_LISTEN", "").rpartition(":")[2] or "11435"
    path = next((word for word in arguments if word.startswith("/")), "/healthz")
    port = int(next((word for word in arguments if word.isdecimal()), admin))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        sys.stdout.write(answer.read(300).decode(errors="replace"))
        return 0 if answer.status == 200 else 1
    except (OSError, http.client.HTTPException) as error:
        sys.stdout.write(f"no answer on port {port}: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The requests of ``ollama``'s commands, as its Go client makes them."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final

from corral.emulator.cli.arguments import CommandError
from corral.emulator.variables import address, version

_GO: Final = "go1.24.1"
_ONLY_STREAMED: Final = "application/x-ndjson"
_UNAUTHORISED: Final = 401


class StatusError(CommandError):
    """The server answered with an error."""

    def __init__(self, status: int, message: str, shown: str) -> None:
        super().__init__(shown)
        self.status = status
        self.message = message
        self.signin_url = ""


class Client:
    """One command's connections to its server. The owner calls :meth:`close`."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._host, self._port = address(environment)
        self._agent = f"ollama/{version(environment)} (amd64 linux) Go/{_GO}"
        self._connections: list[http.client.HTTPConnection] = []

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    def heartbeat(self) -> None:
        """What every command begins with."""
        try:
            self._send("HEAD", "/", None, "application/json").read()
        except ConnectionRefusedError:
            hint = "could not connect to ollama server, run 'ollama serve' to start it"
            raise CommandError(f"ollama server not responding - {hint}") from None

    def get(self, path: str) -> Any:
        return self._whole("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any] | None) -> Any:
        return self._whole("POST", path, None if body is None else _encoded(body))

    def delete(self, path: str, body: Mapping[str, Any]) -> None:
        self._whole("DELETE", path, _encoded(body))

    def has_blob(self, digest: str) -> bool:
        answer = self._send("HEAD", f"/api/blobs/{digest}", None, "application/json")
        answer.read()
        return answer.status == 200

    def put_blob(self, digest: str, path: Path) -> None:
        with path.open("rb") as file:
            self._whole("POST", f"/api/blobs/{digest}", file)

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The objects as they come. An end without a last one goes unnoticed, as in the original."""
        answer = self._send("POST", path, _encoded(body), _ONLY_STREAMED)
        while line := answer.readline():
            if not line.strip():
                continue
            found = _object(line)
            message = str(found.get("error", ""))
            if answer.status >= 400:
                error = StatusError(answer.status, message, f"{answer.status} {answer.reason}: {message}")
                error.signin_url = str(found.get("signin_url", ""))
                raise error
            if message:
                raise CommandError(message)
            yield found

    def _whole(self, method: str, path: str, body: bytes | IO[bytes] | None) -> Any:
        answer = self._send(method, path, body, "application/json")
        content = answer.read()
        if answer.status >= 400:
            found = _object(content)
            message = str(found.get("error") or content.decode("utf-8", "replace"))
            shown = f"{answer.status} {answer.reason}" if answer.status == _UNAUTHORISED else message
            error = StatusError(answer.status, message, shown)
            error.signin_url = str(found.get("signin_url", ""))
            raise error
        return json.loads(content) if content else None

    def _send(self, method: str, path: str, body: bytes | IO[bytes] | None, accept: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(self._host, self._port)
        self._connections.append(connection)
        headers = {"User-Agent": self._agent, "Content-Type": "application/json", "Accept": accept}
        try:
            connection.request(method, path, body, headers)
            return connection.getresponse()
        except http.client.HTTPException as error:
            raise CommandError(str(error) or "EOF") from None


def _encoded(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


def _object(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}

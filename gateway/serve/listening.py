"""Why an address cannot be listened on, said so that the reader knows what to do next."""

from __future__ import annotations

import errno
import json
from typing import Any

from corral.errors import OperatorError

ASK_S = 1.0


def explain_listen_error(error: OSError, host: str, port: int) -> OperatorError:
    """The operator's words for a failed bind of ``host:port``."""
    if error.errno == errno.EADDRINUSE:
        return explain_address_in_use(host, port)
    where = _shown(host, port)
    if error.errno == errno.EADDRNOTAVAIL:
        return OperatorError(
            f"cannot listen on {where}: no interface of this machine has that address; 0.0.0.0 means every interface"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return OperatorError(f"cannot listen on {where}: ports below 1024 need extra rights; choose a higher port")
    return OperatorError(f"cannot listen on {where}: {error.strerror or error}")


def explain_address_in_use(host: str, port: int) -> OperatorError:
    """Names the address and, where an Ollama or a Corral answers there, the ways out. Asks it for a second at most."""
    where = _shown(host, port)
    headers, page = _answer(host, port, "/api/version")
    version = _ollama_version(headers, page)
    if version is not None:
        return _taken_by_ollama(where, version, _shown(host, port + 2 if port < 65_533 else 11_436))
    if _is_corral(host, port, headers, page):
        return OperatorError(f"{where} is taken by another Corral; stop that one or choose another address")
    return OperatorError(
        f"{where} is taken by another program; stop it or choose another address\n"
        f"  which program it is: ss -ltnp 'sport = :{port}'"
    )


def _taken_by_ollama(where: str, version: str, other: str) -> OperatorError:
    return OperatorError(
        f"{where} is taken by an Ollama (version {version}). Choose one:\n"
        "  put it behind Corral: restart it as OLLAMA_HOST=127.0.0.1:21001 ollama serve\n"
        '    and list it under replicas: {id: a, url: "http://127.0.0.1:21001"}\n'
        "  or stop it: systemctl stop ollama (or end `ollama serve`, or quit the Ollama app)\n"
        f"  or give Corral another address, for instance listen: {other}"
    )


def ollama_version(host: str, port: int) -> str | None:
    """The version of the Ollama that answers at this address; None when none does within a second."""
    return _ollama_version(*_answer(host, port, "/api/version"))


def who_listens(host: str, port: int) -> str:
    """``corral``, ``ollama VERSION`` or ``another program``; asks it for a second or two."""
    headers, page = _answer(host, port, "/api/version")
    version = _ollama_version(headers, page)
    if version is not None:
        return f"ollama {version}"
    return "corral" if _is_corral(host, port, headers, page) else "another program"


def _ollama_version(headers: set[str], page: dict[str, Any]) -> str | None:
    version = page.get("version")
    if "x-request-id" in headers or not isinstance(version, str):  # Ollama sends no request id, a gateway does
        return None
    return version if len(version) <= 40 and version.isprintable() else None


def _is_corral(host: str, port: int, headers: set[str], page: dict[str, Any]) -> bool:
    if "version" in page:
        return "x-request-id" in headers
    return bool(headers) and _answer(host, port, "/healthz")[1].get("program") == "corral"


def _answer(host: str, port: int, path: str) -> tuple[set[str], dict[str, Any]]:
    """Header names (lower case) and JSON object of the answer; empty where there is none."""
    import http.client  # heavy, and needed only where an address is taken

    connection = http.client.HTTPConnection(_reachable(host), port, timeout=ASK_S)
    try:
        connection.request("GET", path, headers={"Host": f"127.0.0.1:{port}"})
        answer = connection.getresponse()
        body = answer.read(65_536)
    except (OSError, http.client.HTTPException):
        return set(), {}
    finally:
        connection.close()
    return {name.lower() for name in answer.headers}, _object(body)


def _object(body: bytes) -> dict[str, Any]:
    try:
        loaded = json.loads(body)
    except ValueError:
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

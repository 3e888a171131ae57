"""Discovery in Kubernetes, against an API server on loopback."""

from __future__ import annotations

import asyncio
import logging
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random

import pytest

from corral.errors import OperatorError
from corral.gateway.config.discovery import DiscoveryConfig, KubernetesConfig
from corral.gateway.config.places import ReplicaUrl
from corral.gateway.discovery import kubernetes
from corral.gateway.discovery.api import Api
from corral.gateway.discovery.discovery import GONE, LEAVING, Discovery
from corral.probes.ollama import probe_session
from tests.gateway.discovery.api_server import ApiServer, api_server, endpoint, slice_of
from tests.gateway.discovery.stage import Notes, until


@pytest.fixture
def account(tmp_path: Path) -> Path:
    """The folder of a service account."""
    (tmp_path / "token").write_text("first")
    (tmp_path / "namespace").write_text("corral")
    return tmp_path


@asynccontextmanager
async def following(
    server: ApiServer,
    account: Path,
    leaving_s: float = 60,
    port: int | str | None = None,
    *,
    in_cluster: bool = False,
) -> AsyncIterator[Notes]:
    notes = Notes()
    api = None if in_cluster else ReplicaUrl("127.0.0.1", server.port)
    config = KubernetesConfig(service="corral-nodes", api=api, service_account=account, port=port)
    async with probe_session() as session:
        discovery = Discovery(notes, session, asyncio.get_running_loop().time, Random(1))
        discovery.use(DiscoveryConfig(kubernetes=config, leaving_s=leaving_s))
        try:
            yield notes
        finally:
            await discovery.close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes, "FIRST_PAUSE_S", 0.02)


async def test_ready_endpoints_are_replicas_and_follow_the_cluster(account: Path) -> None:
    async with api_server() as server:
        server.put(slice_of("a", endpoint("10.0.0.1"), endpoint("10.0.0.2"), endpoint("10.0.0.9", ready=False)))
        async with following(server, account) as notes:
            await until(lambda: notes.ids == ["10.0.0.1", "10.0.0.2"])
            assert notes.replicas[0].port == 11434
            assert notes.replicas[0].found_by == "kubernetes corral/corral-nodes"
            server.put(slice_of("b", endpoint("10.0.0.3")))
            await until(lambda: notes.serving == ["10.0.0.1", "10.0.0.2", "10.0.0.3"])
            server.put(slice_of("a", endpoint("10.0.0.2")))
            await until(lambda: notes.serving == ["10.0.0.2", "10.0.0.3"])
            assert notes.holds == {"10.0.0.1": GONE}
            server.delete("b")
            await until(lambda: notes.serving == ["10.0.0.2"])
            assert server.lists == 1


async def test_one_that_terminates_is_drained_not_cut(account: Path) -> None:
    async with api_server() as server:
        server.put(slice_of("a", endpoint("10.0.0.1"), endpoint("10.0.0.2")))
        async with following(server, account, leaving_s=0) as notes:
            await until(lambda: len(notes.serving) == 2)
            server.put(slice_of("a", endpoint("10.0.0.1", ready=False, terminating=True), endpoint("10.0.0.2")))
            await until(lambda: notes.serving == ["10.0.0.2"])
            assert notes.holds == {"10.0.0.1": LEAVING}
            assert notes.ids == ["10.0.0.1", "10.0.0.2"]
            server.put(slice_of("a", endpoint("10.0.0.2")))
            await until(lambda: notes.ids == ["10.0.0.2"])


async def test_one_that_is_not_ready_for_a_moment_is_kept_and_serves_again(account: Path) -> None:
    async with api_server() as server:
        server.put(slice_of("a", endpoint("10.0.0.1")))
        async with following(server, account) as notes:
            await until(lambda: notes.serving == ["10.0.0.1"])
            server.put(slice_of("a", endpoint("10.0.0.1", ready=False)))
            await until(lambda: notes.serving == [])
            assert notes.ids == ["10.0.0.1"]
            server.put(slice_of("a", endpoint("10.0.0.1")))
            await until(lambda: notes.serving == ["10.0.0.1"])


async def test_a_watch_that_is_too_old_lists_anew(account: Path) -> None:
    async with api_server() as server:
        server.put(slice_of("a", endpoint("10.0.0.1")))
        async with following(server, account) as notes:
            await until(lambda: server.watches == 1)
            server.slices["a"] = slice_of("a", endpoint("10.0.0.2"))  # a change that the watch never sees
            server.compact()
            await until(lambda: notes.serving == ["10.0.0.2"])
            assert server.lists == 2


async def test_a_watch_that_breaks_goes_on_where_it_was(account: Path) -> None:
    async with api_server() as server:
        server.put(slice_of("a", endpoint("10.0.0.1")))
        async with following(server, account) as notes:
            await until(lambda: server.watches == 1)
            server.put(slice_of("b", endpoint("10.0.0.2")))
            await until(lambda: len(notes.serving) == 2)
            for _ in range(3):
                before = server.watches
                server.cut()
                await until(partial(_is_watched_again, server, before))
            server.put(slice_of("b", endpoint("10.0.0.3")))
            await until(lambda: notes.serving == ["10.0.0.1", "10.0.0.3"])
            assert server.lists == 1


def _is_watched_again(server: ApiServer, before: int) -> bool:
    return server.watches > before


async def test_a_bookmark_moves_the_place_on(account: Path) -> None:
    async with api_server() as server:
        server.put(slice_of("a", endpoint("10.0.0.1")))
        async with following(server, account) as notes:
            await until(lambda: server.watches == 1)
            server.bookmark()
            marked = str(server.version)
            await asyncio.sleep(0.05)
            server.cut()
            await until(lambda: server.watches == 2)
            assert server.queries[-1]["resourceVersion"] == marked
            assert server.queries[-1]["allowWatchBookmarks"] == "true"
            assert notes.serving == ["10.0.0.1"]


async def test_an_api_server_that_is_gone_takes_no_replica_away(
    account: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with api_server() as server:
        server.put(slice_of("a", endpoint("10.0.0.1")))
        async with following(server, account) as notes:
            await until(lambda: server.watches == 1)
            server.refuses = (500, "etcdserver: leader changed")
            server.cut()
            await until(lambda: "etcdserver" in caplog.text)
            assert notes.serving == ["10.0.0.1"]
            server.refuses = None
            server.put(slice_of("a", endpoint("10.0.0.2")))
            await until(lambda: notes.serving == ["10.0.0.2"], 20)


async def test_the_token_is_read_anew(account: Path) -> None:
    async with api_server() as server:
        server.token = "first"
        server.put(slice_of("a", endpoint("10.0.0.1")))
        async with following(server, account) as notes:
            await until(lambda: server.watches == 1)
            server.token = "second"
            (account / "token").write_text("second\n")
            server.cut()
            await until(lambda: server.watches == 2)
            assert server.tokens[-1] == "Bearer second"
            assert notes.serving == ["10.0.0.1"]


async def test_a_service_account_that_may_not_look_is_told_what_it_needs(
    account: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with api_server() as server:
        server.refuses = (403, 'endpointslices.discovery.k8s.io is forbidden: User "system:serviceaccount:corral:x"')
        async with following(server, account):
            await until(lambda: "needs a Role in namespace corral" in caplog.text)
            assert "resources: [endpointslices], verbs: [list, watch]" in caplog.text


async def test_a_list_of_many_pages_is_read_whole(account: Path) -> None:
    async with api_server() as server:
        server.page_size = 2
        for number in range(5):
            server.put(slice_of(f"s{number}", endpoint(f"10.0.0.{number}")))
        async with following(server, account) as notes:
            await until(lambda: len(notes.serving) == 5)


async def test_of_two_families_the_first_counts(account: Path) -> None:
    async with api_server() as server:
        server.put(slice_of("six", endpoint("fd00::1"), family="IPv6"))
        async with following(server, account) as notes:
            await until(lambda: notes.serving == ["fd00--1"])
            server.put(slice_of("four", endpoint("10.0.0.1")))
            await until(lambda: notes.serving == ["10.0.0.1"])


async def test_a_port_that_is_not_there_is_said(account: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with api_server() as server:
        server.put(slice_of("a", endpoint("10.0.0.1")))
        async with following(server, account, port="http") as notes:
            await until(lambda: "no port 'http' in its EndpointSlices (there: ollama, admin)" in caplog.text)
            assert notes.ids == []


async def test_a_port_by_number_needs_no_name(account: Path) -> None:
    async with api_server() as server:
        server.put(slice_of("a", endpoint("10.0.0.1"), ports=[]))
        async with following(server, account, port=8000) as notes:
            await until(lambda: [replica.port for replica in notes.replicas] == [8000])


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl (Debian: openssl)")
async def test_in_a_cluster_the_service_accounts_authority_is_what_is_trusted(
    account: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key, certificate = account / "key.pem", account / "real.crt"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    made += ["-subj", "/CN=kubernetes", "-addext", "subjectAltName=IP:127.0.0.1"]
    for path in (account / "ca.crt", certificate):  # the first is of somebody else
        await asyncio.to_thread(
            subprocess.run, [*made, "-keyout", str(key), "-out", str(path)], check=True, capture_output=True
        )
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    async with api_server(tls) as server:
        server.put(slice_of("a", endpoint("10.0.0.1")))
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT_HTTPS", str(server.port))
        async with following(server, account, in_cluster=True) as notes:
            await until(lambda: "CERTIFICATE_VERIFY_FAILED" in caplog.text)
            assert server.tokens == []  # nobody unknown is shown the token
            certificate.replace(account / "ca.crt")
            await until(lambda: notes.serving == ["10.0.0.1"])


def test_outside_of_a_cluster_it_says_what_to_do(account: Path) -> None:
    config = KubernetesConfig(service="corral-nodes", service_account=account)
    with pytest.raises(OperatorError, match="kubectl proxy"):
        Api(config, None, {})  # type: ignore[arg-type]


def test_without_a_namespace_it_says_so(tmp_path: Path) -> None:
    config = KubernetesConfig(service="corral-nodes", service_account=tmp_path, api=ReplicaUrl("127.0.0.1", 1))
    with pytest.raises(OperatorError, match="namespace"):
        Api(config, None, {})  # type: ignore[arg-type]

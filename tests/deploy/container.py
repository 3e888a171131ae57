"""What an engine does with an image, done with the kernel's namespaces: a container, and those of a Compose file."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.deploy.compose import FOLDER, STAGES, Service, services
from tests.deploy.image import Image

PATIENCE_S = 60
ENTRYPOINT = STAGES["corral"].last("ENTRYPOINT").words
_NETWORK = "corral-try"
_WRITABLE = ("/tmp", "/var/lib/corral", "/models")
_UNPRIVILEGED = ("--reuid=10001", "--regid=10001", "--clear-groups", "--no-new-privs", "--bounding-set=-all")


class Container:
    """A process of an image as number 1: its own mounts, processes and network, a read-only root, no privileges."""

    def __init__(
        self,
        image: Image,
        arguments: list[str],
        env: Mapping[str, str],
        name: str = "corral",
        binds: Mapping[str, Path] | None = None,
    ) -> None:
        root = image.root
        steps = [
            f"mount --bind {root} {root}",
            f"mount -t proc proc {root}/proc",
            *(f"mount -t tmpfs -o mode=1777 tmpfs {root}{path}" for path in _WRITABLE if image.at(path).exists()),
            *(f"mount --bind {source} {root}{target}" for target, source in (binds or {}).items()),
            f"mount -o remount,bind,ro {root}",
            f"hostname {name}",
            "ip link set lo up",
            'exec "$@"',
        ]
        environ = [f"{key}={value}" for key, value in (image.env | dict(env)).items()]
        start = ["chroot", str(root), "env", "-i", f"--chdir={image.cwd}", *environ, "setpriv", *_UNPRIVILEGED]
        apart = ["unshare", "--mount", "--pid", "--net", "--uts", "--fork"]
        self.process = subprocess.Popen(
            [*apart, "sh", "-c", " && ".join(steps), "sh", *start, *ENTRYPOINT, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def until(self, part: str) -> None:
        """A line with ``part`` was printed."""
        assert self.process.stdout is not None
        said = []
        for line in self.process.stdout:
            said.append(line)
            if part in line:
                return
        raise AssertionError("ended:\n" + "".join(said))

    @property
    def pid(self) -> str:
        """Of its number 1, as this machine counts."""
        return self._children()[0]

    def _children(self) -> list[str]:
        own = self.process.pid
        return Path(f"/proc/{own}/task/{own}/children").read_text().split()

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command in it, as ``docker exec`` runs it."""
        enter = ["nsenter", "--target", self.pid, "--net", "--pid", "--uts", "--mount", "--root", "--wd=/"]
        return subprocess.run([*enter, *command], capture_output=True, text=True, timeout=PATIENCE_S)

    def stopped(self) -> int:
        """Its exit code after a request to end, as ``docker stop`` makes it."""
        os.kill(int(self.pid), signal.SIGTERM)
        assert self.process.stdout is not None
        self.process.stdout.read()
        return self.process.wait(PATIENCE_S)

    def end(self) -> None:
        """Now, and everything in it."""
        if self.process.poll() is None:
            for pid in self._children():
                os.kill(int(pid), signal.SIGKILL)
        self.process.communicate()


@contextmanager
def container(image: Image, *arguments: str, **env: str) -> Iterator[Container]:
    running = Container(image, list(arguments), env)
    try:
        yield running
        assert running.stopped() == 0
    finally:
        running.end()


@contextmanager
def composed(image: Image, chosen: list[Service]) -> Iterator[dict[str, Container]]:
    """Services that run Corral, by name, on a network of their own on which names are known."""
    known = {service.name: f"10.77.0.{number}" for number, service in enumerate(chosen, start=2)}
    names = {"localhost": "127.0.0.1", **known}
    image.at("/etc/hosts").write_text("".join(f"{address} {name}\n" for name, address in names.items()))
    image.at("/etc/corral").mkdir(exist_ok=True)
    running: dict[str, Container] = {}
    _ip("netns", "add", _NETWORK)
    try:
        _ip("-n", _NETWORK, "link", "add", "bridge", "type", "bridge")
        _ip("-n", _NETWORK, "link", "set", "bridge", "up")
        for service in chosen:
            running[service.name] = _started(image, service)
            _join(running[service.name], service.name, known[service.name])
        yield running
        assert {name: one.stopped() for name, one in running.items()} == dict.fromkeys(known, 0)
    finally:
        for one in running.values():
            one.end()
        _ip("netns", "delete", _NETWORK)


def services_of(file: str) -> list[Service]:
    """Those that run Corral."""
    return [service for service in services() if service.file == file and service.is_corral]


def _started(image: Image, service: Service) -> Container:
    binds = {target: FOLDER / source for target, (source, _) in service.mounts.items() if source.startswith(".")}
    one = Container(image, service.arguments, service.env, service.keys.get("hostname", service.name), binds)
    one.until("")  # it runs: its first line
    return one


def _join(one: Container, name: str, address: str) -> None:
    link = f"to-{name}"[:15]
    _ip("-n", _NETWORK, "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", one.pid)
    _ip("-n", _NETWORK, "link", "set", link, "master", "bridge", "up")
    for command in (("address", "add", f"{address}/24", "dev", "eth0"), ("link", "set", "eth0", "up")):
        subprocess.run(["nsenter", "--target", one.pid, "--net", "ip", *command], check=True, timeout=PATIENCE_S)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, timeout=PATIENCE_S)

"""What this gateway has started, on disk: so that the next one finds it after a sudden end of this one."""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from corral.errors import OperatorError
from corral.gateway.run.processes import ProcessId, boot_id

log = logging.getLogger(__name__)

_VERSION: Final = 1
_MOVE: Final = "give this one a folder of its own with `state_dir:`"


class LedgerEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One start of one replica."""

    id: str
    token: str
    """Its mark, see :data:`corral.gateway.run.processes.MARKER`."""
    signature: str
    port: int
    boot: str
    pid: int | None = None
    """None: the process was about to be started."""
    start_ticks: int | None = None

    @property
    def process(self) -> ProcessId | None:
        """The process, if it can be one of this run of the machine."""
        if self.pid is None or self.start_ticks is None or self.boot != boot_id():
            return None
        return ProcessId(self.pid, self.start_ticks)


class _Page(msgspec.Struct, frozen=True):
    version: int
    replicas: list[LedgerEntry]


def default_state_dir(environ: Mapping[str, str]) -> Path:
    """``$XDG_STATE_HOME/corral`` or ``~/.local/state/corral``."""
    base = environ.get("XDG_STATE_HOME", "")
    if base.startswith("/"):
        return Path(base) / "corral"
    return Path(environ.get("HOME") or Path.home()) / ".local/state/corral"


class StateDir:
    """The folder of one gateway, locked for its life. Raises :class:`OperatorError` where it cannot be had."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.logs = path / "logs"
            self.logs.mkdir(mode=0o700, exist_ok=True)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise OperatorError(
                f"cannot use {path} to note what is started: {error.strerror or error}; "
                "make it writable, or set another folder with `state_dir:`"
            ) from error
        try:
            self._take()
            self.home = self._home()
            self._try_out()
        except BaseException:
            os.close(self._lock)
            raise

    def log_of(self, replica_id: str) -> Path:
        return self.logs / f"{replica_id}.log"

    def new_token(self) -> str:
        """A mark that nothing else has; all of this folder begin with :attr:`home`."""
        return f"{self.home}{secrets.token_hex(8)}"

    def close(self) -> None:
        os.close(self._lock)

    def _take(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            other = os.pread(self._lock, 64, 0).decode("utf-8", "replace").partition(" ")[0]
            who = f"the gateway with process number {other}" if other.isdigit() else "another gateway"
            raise OperatorError(f"{self.path} is in use by {who}; stop that one, or {_MOVE}") from error
        except OSError as error:
            raise OperatorError(f"{self.path} cannot be locked: {error.strerror}; {_MOVE}") from error

    def _home(self) -> str:
        """What marks all processes of this folder: a copy of the folder is another one, so its inode is part of it."""
        inode = f"{os.fstat(self._lock).st_ino:x}."
        home = os.pread(self._lock, 128, 0).decode("utf-8", "replace").partition(" ")[2].strip()
        if not home.startswith(inode) or not home.endswith("-"):
            home = f"{inode}{secrets.token_hex(8)}-"
        text = f"{os.getpid()} {home}\n".encode()
        try:
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, text, 0)
        except OSError as error:
            raise self._unwritable(error) from error
        return home

    def _try_out(self) -> None:
        """A full disk is found now rather than when a replica has been started."""
        trial = self.path / "replicas.json.new"
        try:
            trial.write_bytes(b" " * 4096)
            trial.unlink()
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> OperatorError:
        why = error.strerror or str(error)
        return OperatorError(f"cannot write to {self.path}: {why}; make room or set another folder with `state_dir:`")


class Ledger:
    """``replicas.json``: written before and after each start, whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "replicas.json"
        self._entries: dict[str, LedgerEntry] = {}
        self._failed = False

    def read(self) -> tuple[LedgerEntry, ...]:
        """What an earlier gateway left; a page that makes no sense is put aside as ``replicas.json.bad``."""
        try:
            page = msgspec.json.decode(self._path.read_bytes(), type=_Page)
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, RecursionError) as error:
            self._put_aside(str(error))
            return ()
        if page.version != _VERSION:
            self._put_aside(f"version {page.version}")
            return ()
        self._entries = {entry.id: entry for entry in page.replicas}
        return tuple(page.replicas)

    def note(self, entry: LedgerEntry) -> None:
        """This is now the last start of that replica."""
        self._entries[entry.id] = entry
        self._write()

    def forget(self, replica_id: str) -> None:
        """Nothing of it runs."""
        if self._entries.pop(replica_id, None) is not None:
            self._write()

    def _write(self) -> None:
        new = self._path.with_name("replicas.json.new")
        try:
            # Not synced: it matters only as long as the processes live, and they end with the machine.
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(_Page(_VERSION, list(self._entries.values())))))
            new.replace(self._path)
        except OSError as error:
            if not self._failed:
                log.error('ledger_not_written path=%s error="%s"', self._path, error.strerror or error)
            self._failed = True
        else:
            self._failed = False

    def _put_aside(self, why: str) -> None:
        aside = self._path.with_name("replicas.json.bad")
        log.warning('ledger_put_aside path=%s as=%s why="%s"', self._path, aside.name, why)
        try:
            self._path.replace(aside)
        except OSError as error:
            log.warning('ledger_not_put_aside path=%s error="%s"', self._path, error.strerror or error)

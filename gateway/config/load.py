"""A configuration file to a :class:`Config`, or one error that says everything wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from corral.errors import ConfigError
from corral.gateway.config.check import check
from corral.gateway.config.policy import complaints
from corral.gateway.config.problems import Problems
from corral.gateway.config.read import MISSING, Reader
from corral.gateway.config.schema import Config
from corral.gateway.config.tree import compose

MAX_FILE_BYTES = 1 << 20


def load_config(path: Path) -> Config:
    """Read and check ``path``, its policy too. Raises :class:`ConfigError`."""
    return _checked(_read(path), str(path), check_policy=True)


def parse_config(text: str, source: str) -> Config:
    """Check ``text``, without running or seeking its policy. ``source`` is its file's path: errors begin with it, and
    paths in the text start from its folder.

    Raises :class:`ConfigError`.
    """
    return _checked(text, source, check_policy=False)


@contextmanager
def naming(path: Path | None) -> Iterator[None]:
    """What this machine has against a configuration is said with the name of its file, as what is wrong in itself."""
    try:
        yield
    except ConfigError as error:
        if path is None:
            raise
        raise ConfigError(f"{path}: {error}") from error


def _checked(text: str, source: str, *, check_policy: bool) -> Config:
    root = compose(text, source)
    problems = Problems(source)
    reader = Reader(problems, Path(source).parent, complaints if check_policy else None)
    config = reader.struct(root, Config, "")
    if config is not MISSING:
        check(config, root, problems)
    if problems.found:
        raise problems.error()
    assert isinstance(config, Config)
    return config


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; `corral check-config --help` shows the least it needs") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a directory; name the file in it, for instance {path / 'corral.yaml'}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: is larger than {MAX_FILE_BYTES} bytes; this cannot be a configuration")
    return _decoded(data, path)


def _decoded(data: bytes, path: Path) -> str:
    if b"\0" in data:
        raise ConfigError(f"{path}: is a binary file, not YAML text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: is not UTF-8 (byte 0x{data[error.start]:02x}); save it as UTF-8") from None

"""The table of policies, and how a name, a file and options become one."""

from __future__ import annotations

import sys
import traceback
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import msgspec

from corral.errors import ConfigError
from corral.model import Policy
from corral.policies.at_random import AtRandom
from corral.policies.least_inflight import LeastInflight
from corral.policies.power_of_two import PowerOfTwo
from corral.policies.prefer_loaded import PreferLoaded
from corral.policies.round_robin import RoundRobin
from corral.policies.weighted_least_load import WeightedLeastLoad

POLICIES: dict[str, type[Policy]] = {
    "weighted-least-load": WeightedLeastLoad,
    "round-robin": RoundRobin,
    "random": AtRandom,
    "least-inflight": LeastInflight,
    "power-of-two": PowerOfTwo,
    "prefer-loaded": PreferLoaded,
}
ENTRY_POINTS = "corral.policies"


@dataclass(frozen=True, slots=True)
class Complaint:
    """One thing wrong with how a policy was asked for."""

    key: str
    """Below ``policy`` in the configuration: name, path or an option; empty for the policy as a whole."""
    text: str
    is_unknown: bool = False
    """There should be no such key at all."""

    def __str__(self) -> str:
        return f"policy{self.key and '.'}{self.key}: {self.text}"


class PolicyError(ConfigError):
    """There is no such policy, or it cannot be made with these options."""

    def __init__(self, *complaints: Complaint) -> None:
        super().__init__("\n".join(map(str, complaints)))
        self.complaints = complaints


def _refuse(key: str, text: str, error: BaseException | None = None) -> NoReturn:
    raise PolicyError(Complaint(key, text)) from error


def make_policy(name: str, path: str | Path | None = None, options: Mapping[str, object] | None = None) -> Policy:
    """The policy called ``name``, or the class ``name`` of the Python file ``path``, with these options.

    Without a path the name is looked up in :data:`POLICIES`, then among installed packages (entry-point group
    ``corral.policies``). Raises :class:`PolicyError` for whatever does not fit, whatever foreign code raised: a
    reload that meets it must leave the gateway as it is.
    """
    made = _named(name) if path is None else _from_file(Path(path), name)
    return _with_options(name, made, options or {})


def _named(name: str) -> type[Policy]:
    if name in POLICIES:
        return POLICIES[name]
    from importlib.metadata import entry_points  # slow to import, and rarely needed

    installed = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in installed:
        _refuse("name", f"there is no policy {name!r}{_hint(name, [*POLICIES, *installed], 'policies')}")
    try:
        found = installed[name].load()
    except BaseException as error:  # importing a foreign package runs its code
        _refuse("name", f"{installed[name].value}: {_what(error)}", error)
    return _checked(found, installed[name].value)


def _from_file(path: Path, name: str) -> type[Policy]:
    module = types.ModuleType(f"corral_policy_{path.stem}")
    module.__file__ = str(path)
    if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe would be waited for, a device has no end
        _refuse("path", f"cannot read {path}: it is no file")
    try:
        code = compile(path.read_bytes(), str(path), "exec")
    except OSError as error:
        _refuse("path", f"cannot read {path}: {error.strerror}", error)
    except Exception as error:
        _refuse("path", f"{path}:{getattr(error, 'lineno', None) or 1}: {_what(error)}", error)
    before = sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module  # dataclasses look their module up there
    try:
        exec(code, module.__dict__)
    except BaseException as error:  # importing a foreign file runs its code
        _restore(module.__name__, before)
        _refuse("path", f"{path}:{_line_in(path, error)}: {_what(error)}", error)
    found = module.__dict__.get(name)
    if found is None:
        _restore(module.__name__, before)
        classes = [key for key, value in module.__dict__.items() if isinstance(value, type) and _is_own(value, module)]
        _refuse("name", f"{path} defines no {name!r}{_hint(name, classes, 'classes')}")
    return _checked(found, f"{name} in {path}")


def _is_own(value: type, module: types.ModuleType) -> bool:
    return value.__module__ == module.__name__


def _restore(name: str, before: types.ModuleType | None) -> None:
    if before is None:
        sys.modules.pop(name, None)
    else:
        sys.modules[name] = before


def _line_in(path: Path, error: BaseException) -> int:
    """The last line of the file itself that was running when it failed."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return (lines and lines[-1]) or 1


def _what(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _checked(found: object, where: str) -> type[Policy]:
    if not isinstance(found, type) or not callable(getattr(found, "choose", None)):
        _refuse("name", f"{where} is not a policy: that is a class with a method choose(request, candidates, rng)")
    return found


def _with_options(name: str, made: type[Policy], options: Mapping[str, object]) -> Policy:
    known = _option_names(made)
    types_ = _types(made) if options else {}
    values, complaints = {}, []
    for option, value in options.items():
        if option not in known:
            hint = _hint(option, known, "options")
            complaints.append(Complaint(option, f"{name} has no such option{hint}", is_unknown=True))
            continue
        if below := _complaints_below(option, value, types_[option]):
            complaints += below
            continue
        try:
            values[option] = msgspec.convert(value, types_[option])
        except msgspec.ValidationError as error:
            complaints.append(Complaint(option, str(error)))
        except Exception as error:  # a type that no plain value can be turned into
            complaints.append(Complaint(option, _what(error)))
    if complaints:
        raise PolicyError(*complaints)
    try:
        return made(**values)
    except (TypeError, ValueError) as error:  # what a policy refuses an option with: its words are for the operator
        _refuse("", f"{name}: {error}", error)
    except BaseException as error:
        _refuse("", f"{name}: {_what(error)}", error)


def _complaints_below(option: str, value: object, wanted: object) -> list[Complaint]:
    """What is wrong with the keys of an option that is itself a dataclass: msgspec passes over unknown ones."""
    if not (isinstance(wanted, type) and is_dataclass(wanted) and isinstance(value, Mapping)):
        return []
    known, types_, complaints = _option_names(wanted), _types(wanted), []
    for key, content in value.items():
        if key not in known:
            hint = _hint(str(key), known, "keys")
            complaints.append(Complaint(f"{option}.{key}", f"{option} has no such key{hint}", is_unknown=True))
            continue
        try:
            msgspec.convert(content, types_[key])
        except msgspec.ValidationError as error:
            complaints.append(Complaint(f"{option}.{key}", str(error)))
    return complaints


def _option_names(made: type) -> list[str]:
    """The fields of a dataclass; any other class has no options."""
    return [field.name for field in fields(made) if field.init] if is_dataclass(made) else []


def _types(made: type) -> dict[str, Any]:
    try:
        return get_type_hints(made)
    except NameError as error:
        _refuse("", f"{made.__name__}: the type of an option is not defined: {error}", error)
    except Exception as error:  # annotations are code
        _refuse("", f"{made.__name__}: the types of its options cannot be read: {_what(error)}", error)


def _hint(name: str, known: Iterable[str], what: str) -> str:
    known = list(known)
    nearest = get_close_matches(name, known, n=1)
    meant = f"; did you mean {nearest[0]!r}?" if nearest else ";"
    return f"{meant} known {what}: {', '.join(known) or 'none'}"

"""CPU lists as the kernel writes them, and where a PCI device stands on the board."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def parse_cpus(text: str) -> tuple[int, ...]:
    """The CPUs of a list like ``0-3,8``; what is no such list is empty.

    >>> parse_cpus("0-3,8"), parse_cpus("")
    ((0, 1, 2, 3, 8), ())
    """
    cpus: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        if not first.isdigit() or not (last or first).isdigit():
            return ()
        cpus.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(cpus))


def bits_set(words: Iterable[int], bits: int = 64) -> tuple[int, ...]:
    """The numbers of the set bits of a mask in words, the lowest word first.

    >>> bits_set([0b101, 1])
    (0, 2, 64)
    """
    return tuple(place * bits + bit for place, word in enumerate(words) for bit in range(bits) if word >> bit & 1)


def read_text(path: Path) -> str | None:
    """What a file of sysfs holds; None where there is none, or it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def read_int(path: Path) -> int | None:
    """As :func:`read_text`, for a decimal number."""
    text = read_text(path)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def numa_node(device: Path) -> int | None:
    """The NUMA node of a PCI device's folder in sysfs; None where the firmware names none (it says -1)."""
    node = read_int(device / "numa_node")
    return None if node is None or node < 0 else node


def local_cpus(device: Path) -> tuple[int, ...]:
    """The CPUs next to a PCI device's folder in sysfs."""
    return parse_cpus(read_text(device / "local_cpulist") or "")

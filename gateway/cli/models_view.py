"""The pages about models as tables."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click

from corral.gateway.cli.figures import counted, size, span, table
from corral.gateway.cli.messages import visible

Page = dict[str, Any]


def listed(page: Page, now: datetime) -> str:
    """``corral models list``."""
    many = len(page["stores"]) > 1
    head = ["NAME", "ID", "SIZE", "MODIFIED", "IN MEMORY", *(["STORES"] if many else [])]
    rows = [_listed(model, now, many) for model in page["models"] if model["digest"] is not None]
    lines = table(head, rows) if rows else ["no models yet: corral models pull NAME"]
    return "\n".join((*lines, *_notes(page)))


def _listed(model: Page, now: datetime, many: bool) -> list[str]:
    stores = [" ".join(map(visible, model["stores"])) + _outdated(model)] if many else []
    return [
        visible(model["name"]),
        model["digest"].removeprefix("sha256:")[:12],
        "-" if model["remote"] else size(model["size_bytes"]),
        _since(model["modified_at"], now),
        str(len(model["copies"])) if model["copies"] else "-",
        *stores,
    ]


def _outdated(model: Page) -> str:
    return f" (another version at {' '.join(model['outdated_at'])})" if model["outdated_at"] else ""


def _since(at: str | None, now: datetime) -> str:
    if at is None:
        return "?"
    return f"{span(max(0.0, (now - datetime.fromisoformat(at)).total_seconds()))} ago"


def placed(page: Page) -> str:
    """``corral models place``: models in memory first."""
    head = ("MODEL", "REPLICA", "MEMORY", "CONTEXT", "BUSY", "SINCE", "LAST USE", "ELSEWHERE")
    models = sorted(page["models"], key=lambda model: not model["copies"])
    rows = [row for model in models for row in _placed(model)]
    lines = table(head, rows) if rows else ["no models yet: corral models pull NAME"]
    changing = [f"{one['id']} {visible(one['changing'])}" for one in page["replicas"] if one["changing"]]
    return "\n".join((*lines, *(["", *changing] if changing else []), *_notes(page)))


def _placed(model: Page) -> list[tuple[str, ...]]:
    """One row for each copy, or one that says where it could come from."""
    name, elsewhere = visible(model["name"]), _elsewhere(model)
    if not model["copies"]:
        return [(name, "-", "-", "-", "-", "-", "-", elsewhere)]
    rows = []
    for at, copy in enumerate(model["copies"]):
        called = f"as {visible(copy['loaded_as'])}" if copy["loaded_as"] != _plain(model) else ""
        pinned = "pinned" if copy["pinned"] else ""
        notes = (pinned, called, elsewhere if at == 0 else "")
        rows.append((name if at == 0 else "", *_copy(copy), "; ".join(filter(None, notes))))
    return rows


def _copy(copy: Page) -> tuple[str, ...]:
    used = "not yet" if copy["idle_s"] is None else "now" if copy["in_flight"] else f"{span(copy['idle_s'])} ago"
    slots = "?" if copy["slots"] is None else str(copy["slots"])
    context = "?" if copy["context_length"] is None else str(copy["context_length"])
    return (
        copy["replica"],
        f"{size(copy['size_bytes'])}{_spilled(copy)}",
        context,
        f"{copy['in_flight']}/{slots}",
        span(copy["age_s"]),
        used,
    )


def _spilled(copy: Page) -> str:
    """How much of it is not on a GPU, as ``ollama ps`` says it."""
    whole, on_gpu = copy["size_bytes"], copy["size_vram_bytes"]
    return "" if on_gpu >= whole or not whole else f" ({(whole - on_gpu) / whole:.0%} CPU)"


def _elsewhere(model: Page) -> str:
    holding = {copy["replica"] for copy in model["copies"]}
    stored = [id for id in model["stored_at"] if id not in holding]
    parts = (
        f"stored at {' '.join(stored)}" if stored else "",
        f"another version at {' '.join(model['outdated_at'])}" if model["outdated_at"] else "",
        f"kept off {' '.join(model['kept_off'])}" if model["kept_off"] else "",
        "in no store" if model["digest"] is None else "",
        "runs in Ollama's cloud" if model["remote"] else "",
    )
    return "; ".join(filter(None, parts))


def _plain(model: Page) -> str:
    name = str(model["name"]).lower()
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _notes(page: Page) -> list[str]:
    """What is being pulled, and what is not known."""
    many = len(page["stores"]) > 1
    pulls = [_pull(pull, many) for pull in page["pulls"]]
    lost = [
        f"no replica of the store {visible(store['name'])} answers: what is in it is not shown"
        for store in page["stores"]
        if not store["reachable"]
    ]
    return ["", *pulls, *lost] if pulls or lost else []


def _pull(pull: Page, many: bool) -> str:
    completed, total = pull["completed_bytes"], pull["total_bytes"]
    if pull["store"] is None:
        far = "waits for its turn"
    elif not total:
        far = "begins"
    else:
        far = f"{completed / total:.0%} of {size(total)}"
    waiting = f"{pull['waiting']} waiting for it" if pull["waiting"] else "nobody waiting for it"
    into = f" into {visible(pull['store'])}" if many and pull["store"] else ""
    return f"pulling {visible(pull['model'])}{into}: {far}, for {span(pull['for_s'])}, {waiting}"


def garbage(report: Page) -> str:
    """``corral models gc``: one store."""
    name = report["folder"] or f"store {report['stores'][0]}"
    lines = [click.style(visible(name), bold=True)]
    if report["problem"] and not report["removed"]:
        return "\n".join((*lines, f"  not looked at: {visible(report['problem'])}"))
    lines += [f"  {line}" for line in _waste(report["waste"])]
    lines += [f"  left: {visible(one['file'])}: {visible(one['why'])}" for one in report["failed"]]
    if report["problem"]:
        lines.append(f"  stopped: {visible(report['problem'])}")
    return "\n".join((*lines, f"  {_sum(report)}"))


def _waste(waste: Sequence[Page]) -> list[str]:
    rows = [(one["kind"], size(one["size_bytes"]), f"{span(one['age_s'])} old", _short(one["name"])) for one in waste]
    return table(("WHAT", "FREES", "AGE", "NAME"), rows) if rows else []


def _short(name: str) -> str:
    """A digest by its beginning, as Ollama shows it."""
    head, mark, digest = name.partition("sha256-")
    return f"{head}{mark}{digest[:12]}" if mark else name


def _sum(report: Page) -> str:
    waste, young = report["waste"], report["young"]
    files = counted(sum(one["files"] for one in waste), "file")
    total = size(sum(one["size_bytes"] for one in waste))
    if report["removed"]:
        return f"{total} freed: {files} removed" if waste else "nothing was removed"
    more = counted(young["files"], "more file") if young["files"] else ""
    later = f"; {more} ({size(young['size_bytes'])}) not old enough" if more else ""
    return f"{total} in {files}{later}" if waste else f"nothing to remove{later}"


def utc_now() -> datetime:
    return datetime.now(UTC)

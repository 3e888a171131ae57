"""The doctor's page as text and as JSON."""

from __future__ import annotations

import json

import click

from corral.gateway.doctor.checks import Report, examine
from corral.gateway.doctor.render import as_json, as_text
from corral.gateway.doctor.verdict import Check, Level
from tests.gateway.doctor.machines import gpu, machine, nvlink

REPORT = Report(
    (
        ("GPUs", (Check("driver", Level.OK, "570.86.15"), Check("persistence", Level.WARNING, "off", "turn it on"))),
        ("Nothing", ()),
        ("Ollama", (Check("ollama", Level.PROBLEM, "no program", "get it"),)),
    )
)


def test_the_page_is_aligned_with_advice_below_and_a_count_at_its_end() -> None:
    assert click.unstyle(as_text(REPORT, 80)) == (
        "GPUs\n"
        "  ok       driver       570.86.15\n"
        "  warning  persistence  off\n"
        "                        -> turn it on\n"
        "Ollama\n"
        "  problem  ollama       no program\n"
        "                        -> get it\n"
        "\n"
        "1 ok, 1 warning, 1 problem"
    )


def test_levels_have_their_colours() -> None:
    text = as_text(REPORT, 80)
    for level, color in (("ok", "green"), ("warning", "yellow"), ("problem", "red")):
        assert click.style(f"{level:<7}", fg=color) in text


def test_a_large_machine_fits_a_page_and_no_line_is_wider_than_asked() -> None:
    eight = [gpu(index, "L4" if index % 2 else "RTX 4090", persistence_mode=False) for index in range(8)]
    text = click.unstyle(as_text(examine(machine(*eight, links=[nvlink(0, 1), nvlink(2, 3, 3)])), 100))
    assert len(text.splitlines()) <= 50
    assert max(map(len, text.splitlines())) <= 100


def test_names_of_other_programs_do_not_move_the_cursor() -> None:
    report = Report((("GPUs", (Check("other users", Level.OK, "held by \x1b[2Jevil\x07 (pid 5)"),)),))
    assert "\x1b[2J" not in as_text(report, 80)
    assert "evil" in as_text(report, 80)


def test_json_has_every_check_and_the_worst_level() -> None:
    page = as_json(REPORT)
    assert json.loads(json.dumps(page)) == {
        "schema": 1,
        "checks": [
            {"name": "driver", "level": "ok", "found": "570.86.15", "advice": None},
            {"name": "persistence", "level": "warning", "found": "off", "advice": "turn it on"},
            {"name": "ollama", "level": "problem", "found": "no program", "advice": "get it"},
        ],
        "worst": "problem",
    }


def test_the_exit_code_follows_the_worst_level() -> None:
    assert [level.exit_code for level in Level] == [0, 1, 2]
    assert Report(()).worst is Level.OK
    assert REPORT.worst is Level.PROBLEM

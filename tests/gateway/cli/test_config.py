"""``corral config`` and ``corral check-config --json``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from corral.gateway.cli.entry import run

TEXT = """\
replicas: [{id: a, url: "http://127.0.0.1:21001"}]
queue: {max_wait_s: 5}
ollama: {env: {A_TOKEN: hush}}
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("OLLAMA_HOST", "OLLAMA_MODELS", "CORRAL_CONFIG", "CORRAL_LISTEN", "CORRAL_ADMIN_LISTEN"):
        monkeypatch.delenv(name, raising=False)


def shown(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> str:
    assert run(args) == code
    return capsys.readouterr().out


def test_changed_values_are_shown_with_where_they_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "corral.yaml").write_text(TEXT)
    monkeypatch.setenv("OLLAMA_HOST", ":80")
    assert shown(capsys, "config", "show", "--origin", "--changed") == (
        "# corral.yaml\n"
        "replicas:\n"
        "  - id: a                                 # corral.yaml:1\n"
        "    url: http://127.0.0.1:21001           # corral.yaml:1\n"
        "ollama:\n"
        "  env:\n"
        "    A_TOKEN: '***'                        # corral.yaml:3\n"
        "listen: 0.0.0.0:80                        # OLLAMA_HOST\n"
        "queue:\n"
        "  max_wait_s: 5                           # corral.yaml:2\n"
    )


def test_without_origins_and_without_a_file_everything_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "config", "show")
    assert text.startswith("# no file\n# replicas: empty\n")
    assert "\nlisten: 127.0.0.1:11434\n" in text
    assert shown(capsys, "config", "show", "--changed") == "# no file\n# nothing but defaults\n"


def test_json_is_the_page_of_the_admin_port(capsys: pytest.CaptureFixture[str]) -> None:
    page = json.loads(shown(capsys, "config", "show", "--json"))
    assert {"schema", "file", "keys", "warnings"} == page.keys()


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    page = json.loads(shown(capsys, "config", "schema"))
    assert page["title"] == "corral.yaml"


def test_config_check_is_check_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "corral.yaml"
    path.write_text(TEXT)
    assert shown(capsys, "config", "check", str(path)) == shown(capsys, "check-config", str(path))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            TEXT + "queues: 1\nlisten: 5\n",
            [
                (4, 1, "queues", "unknown key; did you mean 'queue'?"),
                (5, 9, "listen", "expected host:port, found 5; write 127.0.0.1:5"),
            ],
        ),
        ("a: b: c\n", [(1, 5, "", "not valid YAML: mapping values are not allowed here")]),
        ("", [(None, None, "", "is empty")]),
        (None, [(None, None, "", "no such file")]),
    ],
)
def test_problems_are_told_to_editors_place_by_place(
    text: str | None, wanted: list[tuple[int, int, str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "corral.yaml"
    if text is not None:
        path.write_text(text)
    page = json.loads(shown(capsys, "check-config", str(path), "--json", code=78))
    assert {each["file"] for each in page["problems"]} == {str(path)}
    found = [(each["line"], each["column"], each["key"]) for each in page["problems"]]
    assert found == [each[:3] for each in wanted]
    for problem, (*_, message) in zip(page["problems"], wanted, strict=True):
        assert problem["message"].startswith(message)

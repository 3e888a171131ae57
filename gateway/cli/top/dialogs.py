"""What lies over the picture: a question before something is done, and the list of keys."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Static

HELP = """\
up, down, j, k   choose a replica (or click it), and then:
d  drain: no new requests           r  resume
R  restart its Ollama    x  stop it    a  start it
                 (each after a question; R, x, a where Corral runs it)

/  show only what has a text in it     Esc  show everything again
s  sort the requests by newest, queue, first byte, total, tokens/s
   (or click a column's title)
PgUp, PgDn       through the requests; the wheel moves any part
space            freeze the picture, and let it go on
?  this list     q  quit

BUSY of a replica: its requests, of those it can do at a time for
the models in use. QUEUE, 1ST BYTE, TOTAL: seconds from a request's
arrival. OUTCOME with +1: one replica had failed it before."""


class Question(ModalScreen[bool]):
    """True where the answer is yes."""

    CSS = """
    Question { align: center middle; background: $background 60%; }
    Question Vertical { width: auto; max-width: 76; height: auto; padding: 1 2; }
    Question Vertical { border: round $primary; background: $surface; }
    Question Vertical { border: round $primary; background: $surface; }
    Question Static { width: auto; max-width: 70; }
    Question Horizontal { width: auto; height: auto; margin-top: 1; }
    Question Button { margin-right: 2; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        ("y", "answer(True)", "yes"),
        ("n", "answer(False)", "no"),
        ("escape", "answer(False)", "no"),
        ("q", "answer(False)", "no"),
    ]

    def __init__(self, text: Text) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(self._text)
            with Horizontal():
                yield Button("y  yes", id="yes", compact=True)
                yield Button("n  no", id="no", compact=True)

    def on_mount(self) -> None:
        self.query_one("#no", Button).focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")

    def action_answer(self, answer: bool) -> None:
        self.dismiss(answer)


class Help(ModalScreen[None]):
    """Any key closes it."""

    CSS = """
    Help { align: center middle; background: $background 60%; }
    Help Static { width: auto; height: auto; padding: 0 1; border: round $primary; background: $surface; }
    """

    BINDINGS: ClassVar[list[BindingType]] = [(key, "close", "close") for key in ("q", "escape", "question_mark")]

    def compose(self) -> ComposeResult:
        yield Static(Text(HELP))

    def action_close(self) -> None:
        self.dismiss()

    def on_key(self, event: events.Key) -> None:
        event.stop()
        self.dismiss()

    def on_click(self) -> None:
        self.dismiss()

"""``corral emulate``: the options, checked, and one line on standard output once it listens."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from corral.emulator.settings import Settings

_EPILOG = """\b
Examples:
  corral emulate --gpu "RTX 4090 24GB" --model llama3.1:8b --parallel 4
  corral emulate --listen 127.0.0.1:0 --model llama3.2:1b --model all-minilm --speed 20
  corral emulate --model big=40 --fault crash-runner,count=2 --fault slow-ps,count=all

\b
Faults: KIND[,count=N|all][,model=NAME][,path=/PATH|*][,after=TOKENS][,seconds=S][,every=N][,ratio=P]
While it runs: POST /emulator/fault {"kind": KIND, "count": N or null, ...},
DELETE /emulator/fault, GET /emulator/stats, GET /emulator/verify (the store),
POST /emulator/publish {"model": NAME, "version": N, "size_gb": GB, ...}. Kinds:
"""


class _Command(click.Command):
    """Adds the kinds of faults to the help, read only when help is asked for."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from corral.emulator.faults import KINDS

        super().format_epilog(ctx, formatter)
        with formatter.indentation():
            formatter.write_dl([(name, kind.meaning) for name, kind in KINDS.items()])


class _Amount(click.FloatRange):
    """A range that also keeps out what is no number: every comparison with nan is false."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a number to reckon with.", param, ctx)
        return number


@click.command("emulate", cls=_Command, epilog=_EPILOG)
@click.option("--listen", default="127.0.0.1:11434", show_default=True, help="HOST:PORT; port 0 takes a free one.")
@click.option("--gpu", default="RTX 4090 24GB", show_default=True, help="The GPU to emulate.")
@click.option("--model", "models", multiple=True, help="An installed model: NAME, or NAME=SIZE_GB. Repeat for more.")
@click.option(
    "--parallel", type=click.IntRange(1, 4096), default=1, show_default=True, help="Requests a model answers at once."
)
@click.option("--ollama-version", default="0.32.15", show_default=True, help="Up to 0.24 behaves as the older engine.")
@click.option(
    "--speed",
    type=_Amount(0.001, 100_000),
    default=1.0,
    show_default=True,
    help="Divides all times: 20 is twenty times faster.",
)
@click.option("--id", "identity", default=None, help="Name in messages and counters.  [default: the port]")
@click.option("--store", default=None, help="Directory of models, shared with other emulators.  [default: in memory]")
@click.option("--noprune", is_flag=True, help="Keep layers that nothing names any more, as OLLAMA_NOPRUNE does.")
@click.option("--registry", default=None, help="File of what was published to be pulled.  [default: in the store]")
@click.option(
    "--pull-seconds", type=_Amount(0, 86_400), default=None, help="Seconds a download takes.  [default: by model size]"
)
@click.option(
    "--max-loaded", type=click.IntRange(1, 1000), default=3, show_default=True, help="Models in memory at once."
)
@click.option(
    "--max-queue",
    type=click.IntRange(0, 1_000_000),
    default=512,
    show_default=True,
    help="Requests that may wait for a load.",
)
@click.option("--keep-alive", default="5m", show_default=True, help="How long an idle model stays in memory.")
@click.option(
    "--context-length",
    type=click.IntRange(1, 1 << 24),
    default=None,
    help="Tokens of context.  [default: by GPU memory]",
)
@click.option(
    "--load-seconds", type=_Amount(0, 86_400), default=None, help="Seconds a load takes.  [default: by model size]"
)
@click.option(
    "--rate",
    type=_Amount(0.001, 1_000_000),
    default=None,
    help="Exact tokens/s of every stream.  [default: as the GPU]",
)
@click.option("--stall-ps", is_flag=True, help="/api/ps waits while a model loads or unloads.")
@click.option(
    "--gpu-file",
    "gpu_files",
    multiple=True,
    help="Keep writing the GPU's readings to this file (gpu0.live of the stand-in NVML). Repeat for a group.",
)
@click.option("--runner-process", is_flag=True, help="Each loaded model has a process, which can be killed.")
@click.option("--engine", type=click.Choice(["emulated", "llamacpp"]), default="emulated", show_default=True)
@click.option("--gguf", default=None, help="Model file of --engine llamacpp.")
@click.option(
    "--threads", type=click.IntRange(1, 1024), default=2, show_default=True, help="CPU threads of --engine llamacpp."
)
@click.option("--account", default="emulated", show_default=True, help="Who is signed in to the cloud; empty: nobody.")
@click.option("--no-cloud", is_flag=True, help="Refuse models of the cloud, as OLLAMA_NO_CLOUD does.")
@click.option("--seed", default=0, show_default=True, help="Of everything drawn at random.")
@click.option("--fault", "faults", multiple=True, help="A fault from the start; see below. Repeat for more.")
@click.option("--until-stdin-closes", is_flag=True, help="Exit when standard input ends (the parent is gone).")
def emulate(**options: object) -> None:
    """Emulate one Ollama and its GPU, without either.

    It answers Ollama's own API, OpenAI's and Anthropic's with made-up words at the speed, with the memory and with
    the queueing that the GPU would have. Clients cannot tell the difference, except by reading the text.
    """
    from corral.emulator.launch import launch

    launch(_settings(options), until_stdin_closes=bool(options["until_stdin_closes"]))


def _settings(options: dict[str, object]) -> Settings:
    from corral.emulator.launch import settings_from
    from corral.errors import OperatorError

    try:
        return settings_from(options)
    except OperatorError as error:
        raise click.UsageError(str(error), click.get_current_context()) from None

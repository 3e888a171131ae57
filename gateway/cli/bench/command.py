"""``corral bench``: measures an address, beside one Ollama asked directly."""

from __future__ import annotations

import asyncio
import json
import math
import shlex
import sys
from collections.abc import Sequence

import click

from corral.errors import OperatorError
from corral.gateway.cli.completion import complete_model
from corral.gateway.cli.options import debug_option, json_option

_MOST_CONCURRENCY = 256
_MOST_LEVELS = 16


def _concurrencies(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        numbers = tuple(dict.fromkeys(int(part) for part in value.split(",")))
    except ValueError:
        numbers = ()
    if not numbers or len(numbers) > _MOST_LEVELS or not all(1 <= number <= _MOST_CONCURRENCY for number in numbers):
        said = f"{value!r} is not a list of 1 to {_MOST_LEVELS} numbers from 1 to {_MOST_CONCURRENCY}, as 1,2,4,8."
        raise click.BadParameter(said, ctx, param)
    return numbers


def _a_number(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    if value is not None and math.isnan(value):  # it compares with nothing, so no range keeps it out
        raise click.BadParameter("nan is not a number.", ctx, param)
    return value


@click.command()
@click.option("--url", metavar="URL", default="http://127.0.0.1:11434", show_default=True, help="What is measured.")
@click.option("--against", metavar="URL", multiple=True, help="Measured beside it, in turns: one Ollama, for instance.")
@click.option(
    "--model", metavar="NAME", shell_complete=complete_model, help="The model to ask.  [default: one in memory]"
)
@click.option(
    "--concurrency",
    "concurrencies",
    metavar="N,…",
    default="1,2,4,8",
    show_default=True,
    callback=_concurrencies,
    help="Requests at a time.",
)
@click.option(
    "--requests",
    type=click.IntRange(1, 100_000),
    help="At each concurrency, of each address.  [default: 6 for each at a time, 12 at least]",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 3600),
    callback=_a_number,
    help="So long instead; what is under way then is waited for.",
)
@click.option("--prompt-tokens", type=click.IntRange(1, 100_000), default=200, show_default=True, help="About so many.")
@click.option("--output-tokens", type=click.IntRange(1, 10_000), default=64, show_default=True, help="At most so many.")
@click.option("--fairness/--no-fairness", default=True, show_default=True, help="Measure two tenants, too.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the prompts.")
@click.option("--i-own-it", is_flag=True, help="An address of another machine is mine, and may be put under full load.")
@json_option
@click.option("--markdown", "as_markdown", is_flag=True, help="Print Markdown, to paste.")
@debug_option
def bench(
    url: str,
    against: Sequence[str],
    model: str | None,
    concurrencies: tuple[int, ...],
    requests: int | None,
    seconds: float | None,
    prompt_tokens: int,
    output_tokens: int,
    fairness: bool,
    seed: int,
    i_own_it: bool,
    as_json: bool,
    as_markdown: bool,
) -> int:
    """Measure how fast an address answers: time to the first token and to the end, tokens a second, errors, fairness.

    It puts the address under full load for as long as it takes. Of each address the model is loaded first. Then each
    concurrency is measured in three rounds, in which the addresses take turns. Prompts are made up and no two begin
    alike. Only whole answers count; a 503 is a refusal, after which it waits as it is told; all else is an error.

    Fairness is measured with two API keys: one asks now and then, while the other one asks all the time.

    \b
    Exit code 0: it was measured. 1: it could not be, or there were errors.

    \b
    Examples:
      corral bench
      corral bench --model llama3.1:8b --against http://127.0.0.1:21001
      corral bench --concurrency 16,32 --seconds 60 --markdown > bench.md
    """
    from corral.gateway.cli.bench import report as reports
    from corral.gateway.cli.bench.bench import Asked
    from corral.gateway.cli.bench.bench import bench as run
    from corral.gateway.cli.bench.rounds import Amount

    if requests is not None and seconds is not None:
        raise click.UsageError("--requests and --seconds are two ways to say one thing: give one of them")
    if as_json and as_markdown:
        raise click.UsageError("--json and --markdown exclude each other")
    urls = _allowed(url, against, is_owned=i_own_it)
    asked = Asked(
        _command_line(),
        urls,
        model,
        concurrencies,
        Amount(requests, seconds),
        prompt_tokens,
        output_tokens,
        fairness,
        seed,
    )
    try:
        found = asyncio.run(run(asked, _told))
    finally:
        _told("")
    if as_json:
        click.echo(json.dumps(reports.page(found), indent=2))
    elif as_markdown:
        click.echo(reports.markdown(found))
    else:
        reports.show(found)
    return 1 if any(level.errors for level in found.levels) else 0


def _allowed(url: str, against: Sequence[str], *, is_owned: bool) -> tuple[str, ...]:
    """The addresses, all of this machine unless its owner says otherwise. Raises OperatorError."""
    from corral.gateway.cli.bench.client import given_url, is_loopback

    urls = (given_url(url, "--url"), *(given_url(one, "--against") for one in against))
    if not is_owned:
        for each in urls:
            if not is_loopback(each):
                raise OperatorError(
                    f"{each} is not this machine, and this command puts it under full load\n"
                    "  if it is yours, and nobody minds: --i-own-it"
                )
    return urls


def _command_line() -> str:
    return shlex.join(["corral", *sys.argv[1:]])


def _told(text: str) -> None:
    """What it is at, on a terminal only."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{text}", nl=False, err=True)

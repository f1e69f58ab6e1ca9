"""The command line: arguments in, the library's functions called, errors said in one sentence."""

from __future__ import annotations

import importlib
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

import gammabeta

if TYPE_CHECKING:
    from types import ModuleType

# Exit codes: findings; something asked for cannot be done; Ctrl-C.
FOUND, WRONG, STOPPED = 1, 2, 130

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _files_of(part: str) -> str:
    """Names of claims or subjects by their files: importing them would load scikit-learn for every ``--help``."""
    folder = files("gammabeta").joinpath(part)
    return ", ".join(sorted(name[:-3] for f in folder.iterdir() if (name := f.name).endswith(".py") and name[0] != "_"))


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"gammabeta {gammabeta.__version__}")
        raise typer.Exit


@app.callback()
def gammabeta_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Normalization for PyTorch: what does it do, on your model and data?"""


@app.command()
def study(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CLAIM",
            help=f"The claims to measure, all where none is named: {_files_of('lab/claims')}.",
            show_default=False,
        ),
    ] = None,
    claims: Annotated[
        list[str] | None,
        typer.Option("--claims", metavar="A,B", help="The same as an option, separated by commas.", show_default=False),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few seeds and small grids: minutes in place of half an hour.")
    ] = False,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="The folder for report.html, results.json and the trials.")
    ] = Path("gammabeta-study"),
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help="What to train on: [bold]digits[/], [bold]strokes[/] or [bold]text[/] (built in; all three where not "
            "given), [bold]mnist:FILE[/], [bold]cifar10:FILE[/], [bold]folder:DIR[/], [bold]vowels:DIR[/], "
            "[bold]text:FILE[/], or [bold]package.module:function[/].",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="TARGET",
            help="Your network: [bold]package.module:function[/] or [bold]file.py:function[/], called "
            "function(input_shape, classes, norm).",
            show_default=False,
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Only what the recommendation needs: the norms side by side.")
    ] = False,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            metavar="N",
            help="Images, sequences or windows of text a batch on one device, for the recommendation; 32 where not "
            "given, of text 16.",
            show_default=False,
        ),
    ] = None,
    devices: Annotated[
        int, typer.Option("--devices", metavar="N", help="How many devices, for the recommendation.")
    ] = 1,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs", metavar="N", help="Worker processes; one for each core where not given.", show_default=False
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Other initializations, batches and subsets.")] = 0,
    seeds: Annotated[
        int | None,
        typer.Option(
            "--seeds",
            metavar="N",
            help="How many seeds each result is taken from, as many as would settle it; each claim's own number where "
            "not given.",
            show_default=False,
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget the finished trials in DIR; without it they are not run again.")
    ] = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="DIR",
            help="Go on with the study in DIR as it was asked for; other options, but for --jobs, --engine, "
            "--address and more --seeds, are not needed.",
            show_default=False,
        ),
    ] = None,
    engine_name: Annotated[
        str,
        typer.Option(
            "--engine",
            metavar="NAME",
            help="What runs the trials: [bold]loky[/], processes of this machine; [bold]dask[/] or [bold]ray[/].",
        ),
    ] = "loky",
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            metavar="ADDRESS",
            help="Of the Dask scheduler or Ray cluster; one is started on this machine where not given.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Measure what normalization does, claim by claim, and write a report.

    Every trial is kept as soon as it has finished: after Ctrl-C the same command goes on where it stopped.
    """
    engine = _need("jinja2", "plotly", "gammabeta.lab.study")
    console = Console()
    wanted = [name.strip() for part in [*(names or []), *(claims or [])] for name in part.split(",") if name.strip()]
    asked = {
        "claims": wanted or None,
        "data": data,
        "model": model,
        "quick": quick,
        "batch_size": batch_size,
        "devices": devices,
        "compare_only": compare,
        "out": out,
        "jobs": jobs,
        "seed": seed,
        "seeds": seeds,
        "engine": engine_name,
        "address": address,
    }
    try:
        if resume is not None:
            now = {"jobs": jobs, "engine": engine_name, "address": address} | (
                {} if seeds is None else {"seeds": seeds}
            )
            asked, out = {**engine.asked_for(resume), **now}, resume
        results = engine.study(**asked, fresh=fresh, console=console)
    except engine.StudyError as error:
        _fail(str(error))
    except engine.Interrupted as stopped:
        _draw_what_is_there(out)
        _say(str(stopped))
        raise typer.Exit(STOPPED) from None
    except KeyboardInterrupt:
        _say("Interrupted before the first trial: nothing was decided.")
        raise typer.Exit(STOPPED) from None
    _draw(results, out, console)
    if results.get("failed"):
        raise typer.Exit(FOUND)


@app.command()
def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder that `gammabeta study --out` wrote to.")
    ] = Path("gammabeta-study"),
) -> None:
    """Draw report.html again from the results.json of a study."""
    _need("jinja2", "plotly")
    from gammabeta.pages.report import ReportError, read_results

    try:
        results = read_results(folder)
    except ReportError as error:
        _fail(str(error))
    _draw(results, folder, Console())


@app.command()
def check(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="A model: [bold]package.module:name[/] or [bold]file.py:name[/], an instance or what a function "
            "returns, with literal arguments in parentheses if need be; or a checkpoint file.",
            show_default=False,
        ),
    ],
    inputs: Annotated[
        str | None,
        typer.Option(
            "--inputs",
            metavar="TARGET",
            help="Example inputs, as [bold]data.py:sample[/] or [bold]'torch:randn(2, 3, 224, 224)'[/]; the model runs "
            "on them.",
            show_default=False,
        ),
    ] = None,
    loader: Annotated[
        str | None,
        typer.Option("--loader", metavar="TARGET", help="Batches of what the model takes.", show_default=False),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            "--optimizer",
            metavar="TARGET",
            help="The optimizer, or a function that is called with the model and returns it.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", metavar="N", help="Samples a batch on one device.", show_default=False),
    ] = None,
    intent: Annotated[
        str | None,
        typer.Option("--intent", metavar="WHAT", help="contrastive, gradient-penalty or private.", show_default=False),
    ] = None,
    train: Annotated[
        bool | None,
        typer.Option(
            "--train/--eval",
            help="Check the model in training or in evaluation mode; in the mode it has where not given.",
            show_default=False,
        ),
    ] = None,
    select: Annotated[
        str | None,
        typer.Option(
            "--select", metavar="A,B", help="Rules that run, by code or its beginning, or name.", show_default=False
        ),
    ] = None,
    ignore: Annotated[
        str | None,
        typer.Option(
            "--ignore",
            metavar="A,B",
            help="Rules that do not; [bold]GB401:head.*[/] for some modules.",
            show_default=False,
        ),
    ] = None,
    fail_on: Annotated[
        str | None,
        typer.Option(
            "--fail-on",
            metavar="SEVERITY",
            help="Exit with 1 from findings of this severity on: error, warning or note; error where not given.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[str, typer.Option("--format", metavar="FORMAT", help="text, json, sarif or github.")] = "text",
) -> None:
    """Find what is wrong with a model's normalization: exit code 0 clean, 1 findings, 2 it could not be checked.

    The table \\[tool.gammabeta] of pyproject.toml may hold select, ignore and fail-on.
    """
    from gammabeta.cli import formats, inspection
    from gammabeta.cli.configuration import Configuration

    if output != "text" and output not in formats.WRITERS:
        _fail(f"--format: expected text, {', '.join(formats.WRITERS)}, got {output!r}.")
    given = Configuration(_list(select), _list(ignore), fail_on)
    try:
        found = inspection.inspect(
            target, given, inputs=inputs, loader=loader, optimizer=optimizer, batch_size=batch_size, intent=intent,
            training=train,
        )  # fmt: skip
    except inspection.InspectionError as error:
        _fail(str(error))
    if output == "text":
        formats.show(found.diagnosis, Console(highlight=False))
    else:
        typer.echo(formats.WRITERS[output](found.diagnosis, target, found.file, found.line))
    raise typer.Exit(FOUND if found.failed else 0)


@app.command()
def explain(
    rule: Annotated[str, typer.Argument(metavar="RULE", help="Its code or name.", show_default=False)],
) -> None:
    """Say what a rule finds, why it matters, what to do instead, and when it is wrong."""
    from rich.markdown import Markdown

    from gammabeta.diagnostics.selection import rule_of

    try:
        found = rule_of(rule)
    except ValueError as error:
        _fail(str(error))
    Console().print(Markdown(f"# {found.code} {found.name}\n\n{found.page()}"))


@app.command()
def rules() -> None:
    """List the rules of the check."""
    from rich.table import Table

    from gammabeta.diagnostics.rules import RULES

    table = Table.grid(padding=(0, 2, 0, 0))
    for rule in RULES:
        table.add_row(rule.code, rule.name, rule.severity, rule.sees, escape(rule.title))
    Console(highlight=False).print(table)


@app.command()
def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SUBJECT",
            help=f"The subjects to measure, all where none is named: {_files_of('benchmarks/subjects')}.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        str | None,
        typer.Option(
            "--threads",
            metavar="1,2",
            help="Numbers of threads; one, then as many as torch has, where not given.",
            show_default=False,
        ),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            "--rounds", metavar="N", help="Timings of each contestant: 15, or 5 with --quick.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="The folder for a dated Markdown file of each subject.")
    ] = Path("gammabeta-bench"),
    no_compile: Annotated[
        bool, typer.Option("--no-compile", help="Leave torch.compile out, which compiles once for each row.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Few rows and few rounds.")] = False,
) -> None:
    """Time gammabeta's norms beside torch's and torch.compile's, in turns in this process."""
    from gammabeta.benchmarks import bench as engine

    try:
        counts = [int(part) for part in threads.split(",")] if threads else None
    except ValueError:
        _fail(f"--threads: expected numbers separated by commas, such as 1,2, got {threads!r}.")
    try:
        engine.bench(
            names, threads=counts, rounds=rounds, out=out, compiled=not no_compile, quick=quick, console=Console()
        )
    except engine.BenchError as error:
        _fail(str(error))
    except engine.Interrupted as stopped:
        _say(str(stopped))
        raise typer.Exit(STOPPED) from None


@app.command()
def env() -> None:
    """Show versions, processor, devices, and which kernels are there and why not."""
    from gammabeta.environment import environment

    console = Console(highlight=False, soft_wrap=True)
    for i, (section, rows) in enumerate(environment().items()):
        console.print(f"{'' if i == 0 else chr(10)}[bold]{section}[/]")
        for name, value in rows:
            console.print(f"  {escape(name):<20} {escape(value)}")


def main() -> None:
    """The console script ``gammabeta``."""
    app()


def _list(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _need(*modules: str) -> ModuleType:
    """Import modules that the extra ``study`` brings, or say that it is missing; returns the last."""
    for name in modules:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] == "gammabeta":
                raise
            _fail(f'this needs {error.name}, which is not installed: pip install "gammabeta[study]".')
    return module


def _draw(results: dict[str, object], out: Path, console: Console) -> None:
    from gammabeta.pages.report import ReportError, write_report

    try:
        page = write_report(results, out / "report.html")
    except (ReportError, OSError) as error:
        _fail(str(error))
    console.print(
        f"\nreport   {escape(str(page))}\nresults  {escape(str(out / 'results.json'))}", soft_wrap=True, highlight=False
    )


def _draw_what_is_there(out: Path) -> None:
    """After Ctrl-C: a report of the claims that were decided, if there are any."""
    from gammabeta.pages.report import ReportError, read_results, write_report

    try:
        page = write_report(read_results(out), out / "report.html")
    except (ReportError, OSError):
        return
    _say(f"report of what was decided: {page}")


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _fail(text: str) -> NoReturn:
    _say(f"gammabeta: {text}")
    raise typer.Exit(WRONG)

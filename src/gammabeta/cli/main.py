"""The command line: read arguments, call the library's functions, report errors in one sentence."""

from __future__ import annotations

import importlib
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.text import Text

import gammabeta
from gammabeta.cli import options
from gammabeta.cli.exits import CODES, FOUND, STOPPED, WRONG, Commands, fail, say, unwritten, write
from gammabeta.cli.streams import silence

if TYPE_CHECKING:
    from types import ModuleType

    from gammabeta.cli.inspection import Inspection

app = typer.Typer(
    cls=Commands,
    epilog=CODES,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"gammabeta {gammabeta.__version__}")
        raise typer.Exit


@app.callback()
def gammabeta_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: options.Debug = False,
) -> None:
    """Normalization for PyTorch: what does it do, on your model and data?"""


@app.command()
def study(
    context: typer.Context,
    names: options.ClaimNames = None,
    claims: options.Claims = None,
    quick: options.Quick = False,
    first_look: options.FirstLook = False,
    at_scale: options.AtScale = False,
    out: options.Out = Path("gammabeta-study"),
    data: options.Data = None,
    model: options.Model = None,
    compare: options.Compare = False,
    train: options.TrainingSamples = None,
    batch_size: options.BatchSize = None,
    devices: options.Devices = 1,
    link: options.LinkName = "infiniband",
    until_settled: options.UntilSettled = False,
    confirmatory: options.Confirmatory = False,
    jobs: options.Jobs = None,
    seed: options.Seed = 0,
    seeds: options.Seeds = None,
    fresh: options.Fresh = False,
    resume: options.Resume = None,
    engine_name: options.Engine = "loky",
    address: options.Address = None,
    debug: options.Debug = False,
) -> None:
    """Measure what normalization does, claim by claim, and write a report.

    Every trial is stored as soon as it has finished: after Ctrl-C, SIGTERM or SIGHUP, the same command continues where
    it stopped.
    """
    wanted = [name.strip() for part in [*(names or []), *(claims or [])] for name in part.split(",") if name.strip()]
    asked = {
        "claims": wanted or None,
        "data": data,
        "model": model,
        "quick": quick,
        "first_look": first_look,
        "at_scale": at_scale,
        "train": train,
        "batch_size": batch_size,
        "devices": devices,
        "link": link,
        "until_settled": until_settled,
        "confirmatory": confirmatory,
        "compare_only": compare,
        "out": out,
        "jobs": jobs,
        "seed": seed,
        "seeds": seeds,
        "engine": engine_name,
        "address": address,
    }
    console = Console()
    if resume is not None and fresh:
        _fail(
            f"--resume {resume} --fresh: expected one of the two, got both: --resume goes on with the finished trials, "
            "and --fresh discards them."
        )
    engine = _need("jinja2", "plotly", "gammabeta.lab.study")
    results = _run_study(engine, asked, resume, fresh, console, _given(context))
    _draw(results, out if resume is None else resume, console)
    if results.get("failed"):
        raise typer.Exit(FOUND)


@app.command()
def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder to which `gammabeta study --out` wrote.")
    ] = Path("gammabeta-study"),
    debug: options.Debug = False,
) -> None:
    """Redraw report.html from a study's results.json."""
    _need("jinja2", "plotly")
    from gammabeta.pages.report import ReportError, read_results

    try:
        results = read_results(folder)
    except ReportError as error:
        _fail(str(error))
    _draw(results, folder, Console())


@app.command()
def check(
    target: options.Target,
    inputs: options.Inputs = None,
    loader: options.Loader = None,
    optimizer: options.Optimizer = None,
    forward: options.CheckForward = None,
    batch_size: options.CheckBatchSize = None,
    intent: options.Intent = None,
    train: options.Train = None,
    select: options.Select = None,
    ignore: options.Ignore = None,
    fail_on: options.FailOn = None,
    output: options.Output = "text",
    debug: options.Debug = False,
) -> None:
    """Find what is wrong with a model's normalization.

    Exit codes: 0 clean, 1 findings at or above --fail-on, 2 the target cannot be checked, 3 gammabeta itself failed.
    With --format json, sarif or github there is a valid document in each case. The table \\[tool.gammabeta] of
    pyproject.toml may set select, ignore and fail-on.
    """
    from gammabeta.cli import formats, inspection
    from gammabeta.cli.configuration import Configuration

    if output != "text" and output not in formats.WRITERS:
        _fail(f"--format: expected text, {', '.join(formats.WRITERS)}, got {output!r}.")
    given = Configuration(_list(select), _list(ignore), fail_on)
    request = inspection.Request(target, given, inputs, loader, optimizer, forward, batch_size, intent, train)
    try:
        found = inspection.inspect(request)
    except inspection.InspectionError as error:
        say(f"gammabeta: {error}")
        fail(output, str(error), target)
        raise typer.Exit(WRONG) from None
    if output == "text":
        _show(found)
    else:
        write(formats.WRITERS[output].write(found), output)
    raise typer.Exit(FOUND if found.failed else 0)


@app.command()
def explain(
    rule: Annotated[str, typer.Argument(metavar="RULE", help="The rule's code or name.", show_default=False)],
    debug: options.Debug = False,
) -> None:
    """Explain a rule: what it finds, why it matters, what to do instead, and its limits."""
    from rich.markdown import Markdown

    from gammabeta.diagnostics.rule_page import RulePage, name_of
    from gammabeta.diagnostics.rules import CODES

    files = {known: row for row in CODES.items() for known in (row[0].lower(), name_of(row[1]))}
    if rule.lower() not in files:
        _fail(_no_rule(rule))
    found = RulePage.of(*files[rule.lower()])
    Console().print(Markdown(f"# {found.code} {found.name}\n\n{found.text()}"))


@app.command()
def rules(debug: options.Debug = False) -> None:
    """List the rules of the check."""
    from rich.table import Table

    from gammabeta.diagnostics.rule_page import RulePage
    from gammabeta.diagnostics.rules import CODES

    table = Table.grid(padding=(0, 2, 0, 0))
    for rule in (RulePage.of(code, file) for code, file in CODES.items()):
        table.add_row(rule.code, rule.name, rule.severity, rule.sees, escape(rule.title))
    Console(highlight=False).print(table)


@app.command()
def bench(
    names: options.SubjectNames = None,
    threads: options.Threads = None,
    rounds: options.Rounds = None,
    out: options.BenchOut = Path("gammabeta-bench"),
    no_compile: options.NoCompile = False,
    quick: options.BenchQuick = False,
    debug: options.Debug = False,
) -> None:
    """Time gammabeta's norms against torch's and torch.compile's, in turns in this process."""
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
        say(str(stopped))
        raise typer.Exit(STOPPED) from None


@app.command()
def verify(
    backends: options.Backends = None,
    cases: options.Cases = None,
    thorough: options.Thorough = False,
    seed: options.VerifySeed = 0,
    jobs: options.VerifyJobs = None,
    report: options.Report = False,
    output: options.VerifyOutput = "text",
    debug: options.Debug = False,
) -> None:
    """Compare every norm on this machine with a float64 oracle, and write certificates.

    Every operation, forward and backward, on every backend that is here. The Triton kernels serve on a GPU once they
    have passed on it; native kernels that have failed serve no more. Exit codes: 0 all passed, 1 something failed, or
    memory was too short to see it through.
    """
    from gammabeta.cli import verification
    from gammabeta.proof.verify import VerifyError

    if output not in ("text", "json"):
        _fail(f"--format: expected text or json, got {output!r}.")
    console = Console(highlight=False)
    try:
        found = gammabeta.verify(
            backends=backends, cases=cases, thorough=thorough, seed=seed, jobs=jobs, console=Console(stderr=True)
        )
    except VerifyError as error:
        _fail(str(error))
    if output == "json":
        write(json.dumps(found.to_dict(), indent=1, ensure_ascii=False), output)
    elif report:
        write(found.report(), output)
    else:
        verification.show(found, console)
    raise typer.Exit(0 if found.passed else FOUND)


@app.command()
def env(debug: options.Debug = False) -> None:
    """Show versions, processor, devices, and which kernels are available, or why not."""
    from gammabeta.environment import environment

    console = Console(highlight=False, soft_wrap=True)
    for i, (section, rows) in enumerate(environment().items()):
        console.print(f"{'' if i == 0 else chr(10)}[bold]{section}[/]")
        for name, value in rows:
            console.print(f"  {escape(name):<20} {escape(value)}")


def main() -> None:
    """Run the console script ``gammabeta``."""
    app()


def _show(found: Inspection) -> None:
    """Print an inspection for people; the exit code is the same if they read only the beginning."""
    from gammabeta.cli import formats

    console = Console(highlight=False)
    try:
        formats.show(found.diagnosis, console)
        for note in found.notes:
            console.print(Text(note, "dim"))
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # rich exits with 1, which would be findings
        silence()
    except OSError as error:
        unwritten(error)


def _no_rule(text: str) -> str:
    """Return the library's message about a rule that is not there."""
    from gammabeta.diagnostics.selection import SelectionError, rule_of

    try:
        rule_of(text)
    except SelectionError as error:
        return str(error)
    raise AssertionError(f"{text}: expected no rule of that name, got one")


def _list(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _need(*modules: str) -> ModuleType:
    """Import modules of the extra ``study``, and return the last one; leave the command if one is missing."""
    for name in modules:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] == "gammabeta":
                raise
            _fail(f'this needs {error.name}, which is not installed: pip install "gammabeta[study]".')
    return module


def _run_study(
    engine: ModuleType, asked: dict[str, Any], resume: Path | None, fresh: bool, console: Console, given: set[str]
) -> dict[str, Any]:
    """Run a study, or resume the one in a folder with what may be changed; leave the command where it fails.

    Args:
        given: the names of the options that were written on the command line.
    """
    out = asked["out"] if resume is None else resume
    try:
        if resume is not None:
            engine.refuse_on_resuming(resume, {name: asked[name] for name in given & asked.keys()})
            asked = {**engine.asked_for(resume), **_changes_on_resuming(asked, given)}
        else:
            engine.refuse_contradictions(asked)
        results: dict[str, Any] = engine.study(**asked, fresh=fresh, console=console)
    except engine.StudyError as error:
        if error.details:
            say(error.details)
        _fail(str(error))
    except engine.Interrupted as stopped:
        _draw_what_is_there(out)
        say(str(stopped))
        raise typer.Exit(STOPPED) from None
    except KeyboardInterrupt:
        say("Interrupted before the first trial: nothing was decided.")
        raise typer.Exit(STOPPED) from None
    return results


def _given(context: typer.Context) -> set[str]:
    """Return the names of the options that were written on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def _changes_on_resuming(asked: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """Return the options that count although the study is resumed: who computes, more seeds, and what to measure."""
    changes: dict[str, Any] = {name: asked[name] for name in ("seeds", "jobs", "engine", "address") if name in given}
    if asked["claims"] is not None or asked["compare_only"]:
        changes |= {name: asked[name] for name in ("claims", "compare_only")}
    return changes


def _draw(results: dict[str, object], out: Path, console: Console) -> None:
    from gammabeta.pages.report import ReportError, write_report

    try:
        page = write_report(results, out / "report.html")
    except ReportError as error:
        _fail(str(error))
    except OSError as error:
        _fail(_unwritten_page(out, error))
    console.print(
        f"\nreport   {escape(str(page))}\nresults  {escape(str(out / 'results.json'))}", soft_wrap=True, highlight=False
    )


def _draw_what_is_there(out: Path) -> None:
    """Write a report of the claims that were decided before Ctrl-C, if there are any."""
    from gammabeta.pages.report import ReportError, read_results, write_report

    try:
        page = write_report(read_results(out), out / "report.html")
    except ReportError:
        return
    except OSError as error:
        say(f"gammabeta: {_unwritten_page(out, error)}")
        return
    say(f"report of the claims decided so far: {page}")


def _unwritten_page(out: Path, error: OSError) -> str:
    return (
        f"{out / 'report.html'}: expected a file that can be written, got {error.strerror or error}: the results are "
        f"kept; make room or change permissions, then run {shlex.join(['gammabeta', 'report', str(out)])}."
    )


def _fail(text: str) -> NoReturn:
    say(f"gammabeta: {text}")
    raise typer.Exit(WRONG)

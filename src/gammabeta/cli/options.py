"""Options of the commands `study`, `check` and `bench`, as typer reads them."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer


def _names_in(part: str) -> str:
    """Names of claims or subjects by their files: importing them would load scikit-learn for every ``--help``."""
    folder = files("gammabeta").joinpath(part)
    return ", ".join(sorted(name[:-3] for f in folder.iterdir() if (name := f.name).endswith(".py") and name[0] != "_"))


# study
ClaimNames = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="CLAIM",
        help=f"The claims to measure, all where none is named: {_names_in('lab/claims')}.",
        show_default=False,
    ),
]
Claims = Annotated[
    list[str] | None,
    typer.Option("--claims", metavar="A,B", help="The same as an option, separated by commas.", show_default=False),
]
Quick = Annotated[bool, typer.Option("--quick", help="Few seeds and small grids: minutes in place of half an hour.")]
Out = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="The folder for report.html, results.json and the trials.")
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="What to train on: [bold]digits[/], [bold]strokes[/] or [bold]text[/] (built in; all three where not "
        "given), [bold]mnist:FILE[/], [bold]cifar10:FILE[/], [bold]folder:DIR[/], [bold]vowels:DIR[/], "
        "[bold]text:FILE[/], or [bold]package.module:function[/].",
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="TARGET",
        help="Your network: [bold]package.module:function[/] or [bold]file.py:function[/], called "
        "function(input_shape, classes, norm).",
        show_default=False,
    ),
]
Compare = Annotated[bool, typer.Option("--compare", help="Only what the recommendation needs: the norms side by side.")]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        metavar="N",
        help="Images, sequences or windows of text a batch on one device, for the recommendation; 32 where not "
        "given, of text 16.",
        show_default=False,
    ),
]
Devices = Annotated[int, typer.Option("--devices", metavar="N", help="How many devices, for the recommendation.")]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs", metavar="N", help="Worker processes; one for each core where not given.", show_default=False
    ),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Other initializations, batches and subsets.")]
Seeds = Annotated[
    int | None,
    typer.Option(
        "--seeds",
        metavar="N",
        help="How many seeds each result is taken from, as many as would settle it; each claim's own number where "
        "not given.",
        show_default=False,
    ),
]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Forget the finished trials in DIR; without it they are not run again.")
]
Resume = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        metavar="DIR",
        help="Go on with the study in DIR as it was asked for; other options, but for --jobs, --engine, "
        "--address and more --seeds, are not needed.",
        show_default=False,
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        "--engine",
        metavar="NAME",
        help="What runs the trials: [bold]loky[/], processes of this machine; [bold]dask[/] or [bold]ray[/].",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="ADDRESS",
        help="Of the Dask scheduler or Ray cluster; one is started on this machine where not given.",
        show_default=False,
    ),
]


# check
Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="A model: [bold]package.module:name[/] or [bold]file.py:name[/], an instance or what a function "
        "returns, with literal arguments in parentheses if need be; or a checkpoint file.",
        show_default=False,
    ),
]
Inputs = Annotated[
    str | None,
    typer.Option(
        "--inputs",
        metavar="TARGET",
        help="Example inputs, as [bold]data.py:sample[/] or [bold]'torch:randn(2, 3, 224, 224)'[/]; the model runs "
        "on them.",
        show_default=False,
    ),
]
Loader = Annotated[
    str | None,
    typer.Option("--loader", metavar="TARGET", help="Batches of what the model takes.", show_default=False),
]
Optimizer = Annotated[
    str | None,
    typer.Option(
        "--optimizer",
        metavar="TARGET",
        help="The optimizer, or a function that is called with the model and returns it.",
        show_default=False,
    ),
]
CheckBatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", metavar="N", help="Samples a batch on one device.", show_default=False),
]
Intent = Annotated[
    str | None,
    typer.Option("--intent", metavar="WHAT", help="contrastive, gradient-penalty or private.", show_default=False),
]
Train = Annotated[
    bool | None,
    typer.Option(
        "--train/--eval",
        help="Check the model in training or in evaluation mode; in the mode it has where not given.",
        show_default=False,
    ),
]
Select = Annotated[
    str | None,
    typer.Option(
        "--select", metavar="A,B", help="Rules that run, by code or its beginning, or name.", show_default=False
    ),
]
Ignore = Annotated[
    str | None,
    typer.Option(
        "--ignore",
        metavar="A,B",
        help="Rules that do not; [bold]GB401:head.*[/] for some modules.",
        show_default=False,
    ),
]
FailOn = Annotated[
    str | None,
    typer.Option(
        "--fail-on",
        metavar="SEVERITY",
        help="Exit with 1 from findings of this severity on: error, warning or note; error where not given.",
        show_default=False,
    ),
]
Output = Annotated[str, typer.Option("--format", metavar="FORMAT", help="text, json, sarif or github.")]


# bench
SubjectNames = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SUBJECT",
        help=f"The subjects to measure, all where none is named: {_names_in('benchmarks/subjects')}.",
        show_default=False,
    ),
]
Threads = Annotated[
    str | None,
    typer.Option(
        "--threads",
        metavar="1,2",
        help="Numbers of threads; one, then as many as torch has, where not given.",
        show_default=False,
    ),
]
Rounds = Annotated[
    int | None,
    typer.Option(
        "--rounds", metavar="N", help="Timings of each contestant: 15, or 5 with --quick.", show_default=False
    ),
]
BenchOut = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="The folder for a dated Markdown file of each subject.")
]
NoCompile = Annotated[
    bool, typer.Option("--no-compile", help="Leave torch.compile out, which compiles once for each row.")
]
BenchQuick = Annotated[bool, typer.Option("--quick", help="Few rows and few rounds.")]

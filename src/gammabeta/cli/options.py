"""Options of the commands `study`, `check` and `bench`, as types that typer reads."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer


def _names_in(part: str) -> str:
    """Return the claims' or subjects' names from their files: imports would load scikit-learn for every ``--help``."""
    folder = files("gammabeta").joinpath(part)
    return ", ".join(sorted(name[:-3] for f in folder.iterdir() if (name := f.name).endswith(".py") and name[0] != "_"))


# every command
Debug = Annotated[bool, typer.Option("--debug", help="Print the traceback if gammabeta itself fails.")]

# study
ClaimNames = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="CLAIM",
        help=f"The claims to measure (default: all): {_names_in('lab/claims')}.",
        show_default=False,
    ),
]
Claims = Annotated[
    list[str] | None,
    typer.Option("--claims", metavar="A,B", help="The claims as an option, separated by commas.", show_default=False),
]
Quick = Annotated[bool, typer.Option("--quick", help="Few replicates and small grids.")]
FirstLook = Annotated[
    bool,
    typer.Option(
        "--first-look",
        help="In place of --quick: as quick, with the recommendations and only the headline claims.",
    ),
]
AtScale = Annotated[
    bool,
    typer.Option(
        "--at-scale",
        help="All of --data, with the networks that people train on such data; as --quick otherwise. Takes hours.",
    ),
]
Out = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="The folder for report.html, results.json and the trials.")
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="What to train on: [bold]digits[/], [bold]strokes[/] or [bold]text[/] (built in; default: all three), "
        "[bold]npz:FILE[/] (x_train, y_train, x_test, y_test: images and labels), [bold]mnist:FILE[/], "
        "[bold]cifar10:FILE[/], [bold]folder:DIR[/] (a folder for each class), [bold]vowels:DIR[/], "
        "[bold]text:FILE[/], or [bold]file.py:function[/], which returns such arrays in a dict.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="TARGET",
        help="Your network: [bold]package.module:function[/] or [bold]file.py:function[/], called "
        "function(input_shape, classes, norm), or without norm, for images, whose input_shape is (channels, height, "
        "width); (features, classes, norm) for sequences; (vocabulary, context, norm) for text; "
        "[bold]file.py:function(width=64)[/] adds arguments.",
        show_default=False,
    ),
]
Compare = Annotated[
    bool,
    typer.Option(
        "--compare",
        help="Only compare the norms side by side, for the recommendation; with CLAIM, measure those claims too.",
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        metavar="N",
        help="Images, sequences or windows of text per batch on one device, for the recommendation (default: 32; "
        "text: 16).",
        show_default=False,
    ),
]
TrainingSamples = Annotated[
    str | None,
    typer.Option(
        "--train",
        metavar="N",
        help="Training samples to take of --data at most, or [bold]all[/] (default: 2,000).",
        show_default=False,
    ),
]
Devices = Annotated[int, typer.Option("--devices", metavar="N", help="Number of devices, for the recommendation.")]
LinkName = Annotated[
    str,
    typer.Option(
        "--link",
        metavar="NAME",
        help="The link between --devices, for the cost of synchronizing: [bold]nvlink[/], [bold]infiniband[/], "
        "[bold]100gbe[/], [bold]25gbe[/] or [bold]10gbe[/].",
    ),
]
UntilSettled = Annotated[
    bool,
    typer.Option(
        "--until-settled",
        help="Add replicates to the comparison until every norm is decided, 64 at most; looking several times keeps "
        "the error rate.",
    ),
]
Confirmatory = Annotated[
    bool,
    typer.Option(
        "--confirmatory",
        help="Results that confirm: measured once in a new folder, with a --seed that nobody has looked at.",
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        metavar="N",
        help="Worker processes (default: one per core); a Dask scheduler at --address has its own.",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of initializations, batches and subsets.")]
Seeds = Annotated[
    int | None,
    typer.Option(
        "--seeds",
        metavar="N",
        help="Number of replicates per result (default: each claim's own). To settle what is open, use "
        "--until-settled: more replicates after a look would be a second look.",
        show_default=False,
    ),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Discard the finished trials in DIR instead of reusing them.")]
Resume = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        metavar="DIR",
        help="Continue the study in DIR with its own data, model and options, from any folder. Claims and --compare "
        "add to it; --jobs, --engine, --address and --seeds may change.",
        show_default=False,
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        "--engine",
        metavar="NAME",
        help="What runs the trials: [bold]loky[/] (processes on this machine), [bold]dask[/] or [bold]ray[/].",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="ADDRESS",
        help="Address of the Dask scheduler or Ray cluster (default: one is started on this machine).",
        show_default=False,
    ),
]


# check
Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="A model: [bold]package.module:name[/] or [bold]file.py:name[/], an instance or a function that returns "
        "one, optionally with literal arguments in parentheses; or a checkpoint: a file, or a folder of shards.",
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
    typer.Option(
        "--loader",
        metavar="TARGET",
        help="Batches in the form that the model takes: a DataLoader, or any iterable; the first serves as inputs.",
        show_default=False,
    ),
]
Optimizer = Annotated[
    str | None,
    typer.Option(
        "--optimizer",
        metavar="TARGET",
        help="The optimizer, or a function that gets the model and returns the optimizer.",
        show_default=False,
    ),
]
CheckForward = Annotated[
    str | None,
    typer.Option(
        "--forward",
        metavar="TARGET",
        help="How a batch goes through the model if not by model(batch), such as a graph: a function "
        "[bold]forward(model, batch)[/], as [bold]data.py:forward[/].",
        show_default=False,
    ),
]
CheckBatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", metavar="N", help="Samples per batch on one device in training.", show_default=False),
]
Intent = Annotated[
    str | None,
    typer.Option(
        "--intent",
        metavar="WHAT",
        help="The model's purpose: contrastive, gradient-penalty or private; or memory: what to save.",
        show_default=False,
    ),
]
Train = Annotated[
    bool | None,
    typer.Option(
        "--train/--eval",
        help="Check the model in training or in evaluation mode (default: the mode that it is in).",
        show_default=False,
    ),
]
Select = Annotated[
    str | None,
    typer.Option(
        "--select", metavar="A,B", help="Rules to run, by code, prefix of a code, or name.", show_default=False
    ),
]
Ignore = Annotated[
    str | None,
    typer.Option(
        "--ignore",
        metavar="A,B",
        help="Rules not to run; [bold]GB401:head.*[/] ignores one for some modules.",
        show_default=False,
    ),
]
FailOn = Annotated[
    str | None,
    typer.Option(
        "--fail-on",
        metavar="SEVERITY",
        help="Exit with 1 if a finding has at least this severity: error (default), warning or note.",
        show_default=False,
    ),
]
Output = Annotated[str, typer.Option("--format", metavar="FORMAT", help="Output format: text, json, sarif or github.")]


# bench
SubjectNames = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SUBJECT",
        help=f"The subjects to measure (default: all): {_names_in('benchmarks/subjects')}.",
        show_default=False,
    ),
]
Threads = Annotated[
    str | None,
    typer.Option(
        "--threads",
        metavar="1,2",
        help="Numbers of threads (default: one, then as many as torch uses).",
        show_default=False,
    ),
]
Rounds = Annotated[
    int | None,
    typer.Option(
        "--rounds", metavar="N", help="Timings of each contestant (default: 15, or 5 with --quick).", show_default=False
    ),
]
BenchOut = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="The folder for one dated Markdown file per subject.")
]
NoCompile = Annotated[bool, typer.Option("--no-compile", help="Leave out torch.compile, which compiles once per row.")]
BenchQuick = Annotated[bool, typer.Option("--quick", help="Few rows and few rounds.")]

# verify
Backends = Annotated[
    list[str] | None,
    typer.Option(
        "--backend",
        metavar="NAME",
        help="Only this backend, such as [bold]native[/], [bold]native:avx2[/], [bold]triton:0[/], [bold]torch[/] or "
        "[bold]reference[/]; may be repeated.",
        show_default=False,
    ),
]
Cases = Annotated[
    list[str] | None,
    typer.Option(
        "--case", metavar="NAME", help="Only this case, by its name; may be repeated. Writes no certificate.",
        show_default=False,
    ),
]  # fmt: skip
Thorough = Annotated[bool, typer.Option("--thorough", help="Every case: three times as many.")]
VerifySeed = Annotated[int, typer.Option("--seed", metavar="N", help="The seed of the random values.")]
VerifyJobs = Annotated[
    int | None,
    typer.Option("--jobs", metavar="N", min=1, help="Backends at once (default: one for every two cores)."),
]
Report = Annotated[bool, typer.Option("--report", help="Print one text to paste into an issue, instead of the tables.")]
VerifyOutput = Annotated[str, typer.Option("--format", metavar="FORMAT", help="[bold]text[/] or [bold]json[/].")]

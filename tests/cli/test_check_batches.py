"""gammabeta check with --inputs, --loader and --forward: what each takes, and what is said of anything else."""

import itertools
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from typer.testing import CliRunner

import gammabeta as gb
from gammabeta.cli import main as cli
from gammabeta.diagnostics.mistaken import why_no_batch, why_no_loader

SOURCE = """
import argparse
import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

def model():
    return nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4)).eval()

class Graph:
    def __init__(self):
        self.nodes, self.edges = torch.randn(8, 3), torch.zeros(2, 5)

class GraphNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, nodes, edges, width):
        return self.norm(nodes) * width

graphs = [Graph() for _ in range(3)]

def through(model, graph):
    return model(graph.nodes, graph.edges, 2)

def with_width(width):
    return lambda model, graph: model(graph.nodes, graph.edges, width)

def takes_a_batch(batch):
    return batch

def leaves(model, graph):
    sys.exit("no GPU")

def raises(model, graph):
    raise KeyError("nodes")

def parses():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.parse_args([])

def leaving_batches():
    yield torch.randn(8, 3)
    sys.exit(4)

def nothing():
    pass

sample = torch.randn(8, 3)
loader = DataLoader(TensorDataset(torch.randn(32, 3), torch.zeros(32)), batch_size=8)
empty = []
number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "given.py").write_text(SOURCE)
    yield tmp_path
    sys.modules.pop("given", None)


def run(*words):
    runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    return runner.invoke(cli.app, ["check", *words])


@pytest.mark.parametrize("forward", ["given.py:through", "given.py:with_width(3)"])
@pytest.mark.parametrize("batches", [("--inputs", "given.py:Graph"), ("--loader", "given.py:graphs")])
def test_forward_says_how_a_batch_goes_through_the_model(folder, forward, batches):
    result = run("given.py:GraphNet", "--eval", "--forward", forward, *batches)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "without the inputs" not in result.stdout
    assert run("given.py:GraphNet", "--eval", *batches).exit_code == 2


LINE = {text.strip(): number for number, text in enumerate(SOURCE.splitlines(), 1)}
EXIT, PARSE = LINE['sys.exit("no GPU")'], LINE["parser.parse_args([])"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--forward", "through"), "--forward: expected a batch for it as well, got neither --inputs nor --loader: "
                                   "pass one of them."),
        (("--inputs", "sample", "--forward", "absent"), "given.py:absent: given has no absent."),
        (("--inputs", "sample", "--forward", "number"), "given.py:number: expected a function, got a int."),
        (("--inputs", "sample", "--forward", "GraphNet"), "given.py:GraphNet: expected a function, got the class "
                                                          "GraphNet."),
        (("--inputs", "sample", "--forward", "takes_a_batch"), "check: expected forward as a function of model and "
         "batch, got takes_a_batch(batch): too many positional arguments."),
        (("--inputs", "sample", "--forward", "raises"), "check: expected inputs that the model takes, got tensors of "
         "shapes (8, 3), on which its forward raised KeyError: 'nodes'"),
        (("--inputs", "sample", "--forward", "leaves"), "your code calls sys.exit('no GPU') (given.py, line "
                                                        f"{EXIT}): leave that out where the check runs it."),
        (("--inputs", "parses"), f"given.py:parses: parses calls sys.exit(2) (given.py, line {PARSE}): leave that out "
                                 "where it is called from here."),
        (("--inputs", "number"), "check: expected batches as the model takes them (a tensor, a tuple or list of "
         "positional arguments, or a mapping of keyword arguments), got int: say how it goes through the model by "
         "--forward file.py:function."),
        (("--inputs", "nothing"), "--inputs: expected given.py:nothing to return something, got None."),
        (("--inputs", "loader"), "--inputs: expected one batch, got given.py:loader, a DataLoader, which gives "
                                 "batches: --loader takes it, and the inputs come from there."),
        (("--loader", "sample"), "--loader: expected batches, got given.py:sample, a tensor of shape (8, 3), which is "
                                 "one batch: --inputs takes it."),
        (("--loader", "empty"), "check: expected a loader with at least one batch, got none: an iterator that is used "
         "up gives none, and neither does a DataLoader with drop_last=True of fewer samples than a batch."),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_said_in_a_sentence(folder, words, message):
    result = run("given.py:model", *(word if word[:2] == "--" else f"given.py:{word}" for word in words))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1] == f"gammabeta: {message}"
    assert "Traceback" not in result.stderr


def test_a_loader_that_exits_later_is_not_asked(folder):
    assert run("given.py:model", "--loader", "given.py:leaving_batches", "--select", "GB401").exit_code == 0


def test_a_checkpoint_takes_no_forward(folder):
    torch.save(nn.BatchNorm1d(3).state_dict(), folder / "weights.pt")
    result = run("weights.pt", "--forward", "given.py:through")
    assert result.stderr == "gammabeta: weights.pt: a checkpoint has no model that --forward could be for.\n"


def test_an_exit_at_import_names_the_line(folder):
    (folder / "script.py").write_text("import sys\n\nif len(sys.argv) != 99:\n    sys.exit('usage: script.py DATA')\n")
    result = run("script.py:model")
    assert result.exit_code == 2
    assert result.stderr == (
        "gammabeta: script.py:model: cannot import script.py: it calls sys.exit('usage: script.py DATA') (script.py, "
        'line 4); put what is to run as a script under `if __name__ == "__main__":`.\n'
    )


ONE = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
X, Y = torch.randn(8, 3), torch.zeros(8)


class Pair(nn.Module):
    def forward(self, first, second):
        return first, second


class Stream(IterableDataset):
    def __iter__(self):
        return itertools.repeat(X)


@pytest.mark.parametrize(
    "inputs",
    [
        DataLoader(TensorDataset(X), batch_size=2),
        TensorDataset(X, Y),
        Stream(),
        iter([X]),
        (x for x in [X]),
        [(X, Y), (X, Y)],
        ((X, Y), (X[:3], Y[:3])),
        [{"input": X}, {"input": X}],
        [X, X[:5]],
        [X] * 4,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_gives_batches_is_no_batch(inputs):
    assert why_no_batch(ONE, inputs, None, "--loader") is not None
    assert why_no_batch(ONE, inputs, lambda model, batch: model(X), "--loader") is None
    with pytest.raises(TypeError, match=r"check: expected inputs as one batch, got a .*: loader= takes"):
        gb.check(ONE, inputs)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (ONE, X),
        (ONE, (X, Y)),
        (ONE, [X, Y.long()]),
        (ONE, [X, X]),
        (ONE, {"input": X}),
        (ONE, ({"input": X}, Y)),
        (Pair(), (X, X)),
        (Pair(), [X, X[:5]]),
        (Pair(), ((X, X), Y)),
        (Pair(), ((X, X), (X, X))),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_batch_is_one(model, inputs):
    assert why_no_batch(model, inputs, None, "--loader") is None


@pytest.mark.parametrize(
    "loader", [X, {"x": X}, (X, Y), [X, Y.long()], TensorDataset(X), "data", 3], ids=lambda value: type(value).__name__
)
def test_what_is_one_batch_is_no_loader(loader):
    assert why_no_loader(loader, "--inputs") is not None
    with pytest.raises(TypeError, match="check: expected loader as an iterable of batches, got a "):
        gb.check(ONE, loader=loader)


@pytest.mark.parametrize(
    "loader",
    [[X], [X, X], (X, X), [(X, Y)], [(X, Y), (X, Y)], [{"input": X}], iter([X]), Stream(),
     DataLoader(TensorDataset(X), batch_size=2)],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_loader_is_one(loader):
    assert why_no_loader(loader, "--inputs") is None

"""Targets of the command line: what is imported and called, and how it fails."""

import sys
import types

import pytest
import torch
from torch import nn

from gammabeta.target import TargetError, load_model, load_object

SOURCE = """
import torch
from torch import nn
import beside

instance = nn.BatchNorm1d(3)
number = 3

class Net(nn.Module):
    def __init__(self, width=4, *, bias=True):
        super().__init__()
        self.layer = nn.Linear(2, width, bias=bias)

    @classmethod
    def small(cls):
        return cls(1)

def build(depth):
    return nn.Sequential(*(nn.ReLU() for _ in range(depth)))

def breaks():
    raise KeyError("weights")

def leaves():
    raise SystemExit(3)

def optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)

def sample():
    return torch.zeros(1, 2)

batches = [torch.zeros(1, 2)]
state = nn.Linear(2, 2).state_dict()
program = lambda: torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),))
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Write a file and a module beside it, and remove what their imports leave behind."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    modules = set(sys.modules)
    (tmp_path / "beside.py").write_text("x = 1\n")
    (tmp_path / "some_models.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    yield "some_models.py"
    for name in set(sys.modules) - modules:
        if name in ("beside", "some_models"):
            del sys.modules[name]


def test_instances_classes_functions_and_methods_of_files_and_packages(file, tmp_path):
    assert isinstance(load_model(f"{file}:instance").value, nn.BatchNorm1d)
    assert load_model(f"{file}:Net").value.layer.out_features == 4
    assert load_model(f"{file}:Net(7, bias=False)").value.layer.out_features == 7
    assert load_model("some_models:Net.small").value.layer.out_features == 1
    assert len(load_model(f"{tmp_path / file}:build(3)").value) == 3
    assert isinstance(load_model("torch.nn:ReLU").value, nn.ReLU)


def test_where_it_is_defined(file):
    found = load_model(f"{file}:Net")
    assert (found.file, found.line) == ("some_models.py", 9)
    assert load_model(f"{file}:build(1)").line == 18


def test_objects_are_called_with_the_model_if_they_need_one_argument(file):
    model = load_model(f"{file}:Net").value
    optimizer = load_object(f"{file}:optimizer", model)
    assert optimizer.param_groups[0]["params"][0] is model.layer.weight
    assert load_object(f"{file}:sample", model).shape == (1, 2)
    assert isinstance(load_object(f"{file}:batches", model), list)
    assert load_object("torch:ones(2, 3)", model).shape == (2, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resnet", "resnet: expected package.module:name or file.py:name, either with literal arguments in "
                   "parentheses, or a checkpoint file."),
        ("some_models.py", "some_models.py: expected the name of what is meant in it, as some_models.py:model."),
        ("some_models.py:", "some_models.py:: expected the name of what is meant in it, as some_models.py:model."),
        ("nowhere.py:x", "nowhere.py:x: there is no file nowhere.py."),
        ("no_such.x:y", "no_such.x:y: cannot import no_such.x: ModuleNotFoundError: No module named 'no_such'."),
        ("some_models.py:absent", "some_models.py:absent: some_models has no absent."),
        ("some_models.py:number", "some_models.py:number: expected a torch.nn.Module, or what returns one, got a int."),
        ("some_models.py:number()", "some_models.py:number(): number is a int, which cannot be called."),
        ("some_models.py:sample", "some_models.py:sample: expected a torch.nn.Module, or what returns one, got a "
                                  "Tensor."),
        ("some_models.py:state", "some_models.py:state: expected a torch.nn.Module, or what returns one, got a "
                                 "OrderedDict: a state_dict is checked as a file, or loaded into its model."),
        ("some_models.py:program", "some_models.py:program: expected a torch.nn.Module, or what returns one, got a "
                                   "ExportedProgram: name what returns its module()."),
        ("some_models.py:build", "some_models.py:build: build needs arguments (depth): give literals in parentheses, "
                                 "as some_models.py:build(…), or name a function that needs none."),
        ("some_models.py:build(x)", "some_models.py:build(x): expected literals in parentheses, as (18, "
                                    "pretrained=False), got (x)."),
        ("some_models.py:build(1, 2)", "some_models.py:build(1, 2): build raised TypeError: build() takes 1 positional "
                                       "argument but 2 were given."),
        ("some_models.py:breaks", "some_models.py:breaks: breaks raised KeyError: 'weights'."),
        ("some_models.py:leaves", "some_models.py:leaves: leaves calls sys.exit(3) (some_models.py, line 25): leave "
                                  "that out where it is called from here."),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_is_said_in_one_sentence(file, text, message):
    with pytest.raises(TargetError) as caught:
        load_model(text)
    assert str(caught.value) == message


def test_a_file_that_raises_is_not_left_half_imported(file, tmp_path):
    (tmp_path / "broken_one.py").write_text("x = 1\nraise ValueError('no')\n")
    for _ in range(2):
        with pytest.raises(TargetError, match=r"cannot import broken_one\.py: ValueError: no"):
            load_model("broken_one.py:x")
    assert "broken_one" not in sys.modules


def test_arguments_are_literals_and_never_evaluated(file):
    with pytest.raises(TargetError, match="expected literals"):
        load_model(f"{file}:build(__import__('os').getpid())")
    assert torch.is_tensor(load_object("torch:tensor([1, 2])", nn.ReLU()))


def test_a_file_runs_once_although_another_module_has_its_name(tmp_path, monkeypatch):
    (tmp_path / "taken.py").write_text("from torch import nn\nCOUNT = []\ndef build():\n    COUNT.append(0)\n    "
                                       "return nn.Linear(len(COUNT), 1)\n")  # fmt: skip
    monkeypatch.setitem(sys.modules, "taken", types.ModuleType("taken"))
    target = f"{tmp_path / 'taken.py'}:build"
    assert [load_model(target).value.in_features for _ in range(3)] == [1, 2, 3]

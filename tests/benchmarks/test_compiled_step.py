"""Compiled networks: who is compiled, that both compute the same, and one row by Inductor."""

import importlib.util

import pytest
import torch
from tests.benchmarks.small import convolutional, network, with_activations, with_modules
from torch import nn

import gammabeta as gb
from gammabeta.benchmarks.contest import OURS, TORCH, Subject
from gammabeta.benchmarks.ring import compiling
from gammabeta.benchmarks.subjects import compiled_step
from gammabeta.environment import compiler

FLOAT32 = torch.float32


@pytest.fixture
def given(monkeypatch):
    """Do not compile: what would be compiled is in the list."""
    found = []

    def compiled(model, **options):
        found.append(model)
        return model

    monkeypatch.setattr(torch, "compile", compiled)
    return found


def norms(model):
    return [type(module) for module in model.modules() if isinstance(module, nn.BatchNorm2d | nn.GroupNorm)]


def test_it_is_a_subject_that_needs_the_compiler():
    subject = Subject.of(compiled_step)
    assert subject.compiles
    assert subject.name_of(TORCH) == "torch, compiled"


def test_the_rows_are_every_network_and_inference_of_those_with_batch_norms():
    rows = compiled_step.rows(False)
    names = [row.name for row in rows]
    assert sum("inference" in name for name in names) == 6
    assert len(rows) == 10 + 8 + 10 + 6  # contiguous, channels_last, bfloat16, inference
    assert {row.at_most_of_torch for row in rows} == {1.0}


@pytest.mark.parametrize("build", [with_activations, with_modules])
def test_a_training_step_has_both_networks_compiled(given, build):
    field = compiled_step.training_field(network(build()), "channels_last", FLOAT32)
    theirs, ours = given
    assert not any(issubclass(cls, gb.BatchNorm2d | gb.GroupNorm) for cls in norms(theirs))
    assert all(issubclass(cls, gb.BatchNorm2d | gb.GroupNorm) for cls in norms(ours))
    assert ours[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert [*field.contestants] == [TORCH, OURS]
    before = ours[0].weight.detach().clone()
    for contestant in field.contestants.values():
        contestant(0)()
    assert not torch.equal(before, ours[0].weight)
    torch.testing.assert_close(ours[0].weight, theirs[0].weight, rtol=1e-4, atol=1e-5)  # one step, in float32


def test_inference_has_the_folded_network_compiled(given):
    small = network(with_modules(), batch_norms=True)
    field = compiled_step.inference_field(small)
    theirs, ours = given
    assert nn.BatchNorm2d in norms(theirs)
    assert nn.BatchNorm2d not in norms(ours)
    y, folded = (field.contestants[name](0)() for name in (TORCH, OURS))
    assert not y.requires_grad
    torch.testing.assert_close(y, folded, rtol=1e-4, atol=1e-4)  # float32, γ/σ multiplied into the weights
    assert (y - network().seeded().eval()(*small.batches("contiguous")[0].inputs)).abs().max() > 1e-2, "random norms"


@pytest.mark.parametrize("field", [
    lambda: compiled_step.training_field(network(), "contiguous", FLOAT32),
    lambda: compiled_step.inference_field(network(batch_norms=True)),
])  # fmt: skip
def test_a_compiler_that_fails_is_a_row_that_did_not_run(monkeypatch, field):
    def fails(*inputs):
        raise RuntimeError("no g++ here\nand much more")

    class Broken(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        forward = staticmethod(fails)

    monkeypatch.setattr(torch, "compile", lambda model, **options: Broken(model))
    found = field()
    assert (found.contestants, found.refused) == ({}, {OURS: "RuntimeError: no g++ here"})


def test_a_missing_library_is_a_row_that_did_not_run(monkeypatch):
    row = next(row for row in compiled_step.rows(False) if row.name.startswith("llama"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert row.build(True).refused == {OURS: "it needs transformers: pip install transformers"}


@pytest.mark.skipif(compiler() is None, reason="Inductor needs a C++ compiler")
def test_a_real_row_of_each_kind():
    small = network(convolutional(lambda: [nn.BatchNorm2d(6), nn.ReLU()]), batch_norms=True)
    with compiling(torch.get_num_threads()):
        for field in (compiled_step.training_field(small, "contiguous", FLOAT32), compiled_step.inference_field(small)):
            assert field.refused == {}
            for contestant in field.contestants.values():
                contestant(1)()

"""GB302: what dropout before a BatchNorm does to its variance, and when that is no more than a note."""

import copy

import pytest
import torch
from torch import nn

import gammabeta as gb
from gammabeta.diagnostics.measurement import measure
from gammabeta.diagnostics.rules import dropout_before_norm


@pytest.mark.parametrize(("builder", "factor"), [("flagged", 2.0), ("clean", 1.0)])
def test_the_running_variance_is_not_that_of_evaluation(builder, factor):
    torch.manual_seed(0)
    example = getattr(dropout_before_norm, builder)()
    norm = next(m for m in example.model if isinstance(m, nn.BatchNorm1d))
    nn.init.zeros_(example.model[0].bias)
    norm.momentum = None
    for _ in range(50):
        example.model.train()(example.inputs)
    (given,) = measure(example.model, example.inputs)[next(n for n, m in example.model.named_modules() if m is norm)]
    ratio = float((norm.running_var / given.moments.var(1)).median())
    # 50 batches of 256 samples; half of the values are dropped and the others doubled.
    assert ratio == pytest.approx(factor, rel=0.1)


def test_the_ratio_is_in_the_message():
    torch.manual_seed(0)
    example = dropout_before_norm.flagged()
    (finding,) = gb.check(example.model, example.inputs, select="GB302").findings
    ratio = finding.evidence["ratio"]
    assert ratio == pytest.approx(2.0, rel=0.2)
    assert finding.message == f"dropout before it makes the variance of its input {ratio:.2f} times that of evaluation"


def severities(model, x):
    return [finding.severity for finding in gb.check(model, x, select="GB302").findings]


def network(p, depth=1, width=32):
    block = lambda: (nn.Dropout(p), nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU())  # noqa: E731
    return nn.Sequential(*(layer for _ in range(depth) for layer in block()))


@pytest.mark.parametrize(("p", "found"), [(0.02, []), (0.2, ["note"]), (0.5, ["warning"])])
def test_a_little_dropout_is_a_note(p, found):
    torch.manual_seed(0)
    assert severities(network(p), torch.randn(512, 32)) == found


def test_many_layers_with_a_little_dropout_are_one_note():
    torch.manual_seed(0)
    (finding,) = gb.check(network(0.2, depth=4), torch.randn(512, 32), select="GB302").findings
    assert finding.severity == "note"
    assert finding.message.startswith("dropout before it makes the variance of its input 1.")
    assert len(finding.evidence["layers"]) > 1
    assert f"; of {len(finding.evidence['layers']) - 1} more by less" in finding.message


def test_few_samples_do_not_tell_a_variance():
    """Over 100 draws, dropout on few samples is not taken for what it is on many."""
    for samples in (2, 4, 16):
        for seed in range(100):
            torch.manual_seed(seed)
            assert severities(network(0.03), torch.randn(samples, 32)) == []


def test_statistics_collected_without_dropout_evaluate_better():
    datasets = pytest.importorskip("sklearn.datasets")
    data = datasets.load_digits()
    x, y = torch.tensor(data.images).float().flatten(1) / 16, torch.tensor(data.target)
    torch.manual_seed(0)
    first = (nn.Linear(64, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU())
    model = nn.Sequential(*first, *network(0.5, depth=5), nn.Dropout(0.5), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    shuffled = torch.randperm(len(x))
    training, held = shuffled[:1200], shuffled[1200:]
    for _ in range(15):
        for part in training[torch.randperm(1200)].split(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
    diagnosis = gb.check(model.eval(), x[training], select="GB302")
    assert min(finding.evidence["ratio"] for finding in diagnosis.warnings) > 1.5
    other = copy.deepcopy(model)
    for module in other:
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    gb.recalibrate(other, [x[training]])
    with torch.no_grad():
        as_trained, recalibrated = (nn.functional.cross_entropy(m.eval()(x[held]), y[held]) for m in (model, other))
    assert recalibrated < 0.99 * as_trained


def test_a_variance_that_wrong_statistics_let_vanish_is_no_measure_of_dropout():
    """0.04 of the initial variance of 1 is left, a thousand times that of the input: any dropout behind it is large."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.Dropout(0.5), nn.BatchNorm1d(16)
    )
    x = torch.randn(256, 8)
    with torch.no_grad():
        model[0].weight.mul_(0.01)
    for _ in range(30):
        model(torch.randn(256, 8))
    model.eval()
    assert gb.check(model, x, select="GB302").warnings == ()
    gb.recalibrate(model, [torch.randn(256, 8) for _ in range(4)])
    assert [finding.where for finding in gb.check(model, x, select="GB302").warnings] == ["5"]

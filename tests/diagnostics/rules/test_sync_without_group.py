"""GB501: torch's SyncBatchNorm without other processes, or on a CPU."""

import torch
import torch.distributed as dist
from tests.distributed.world import run
from torch import nn

import gammabeta as gb
from gammabeta.diagnostics.rules import sync_without_group


def test_adopting_changes_no_output():
    torch.manual_seed(0)
    model = sync_without_group.flagged().model
    nn.init.normal_(model[1].weight)
    nn.init.normal_(model[1].bias)
    x = torch.randn(4, 3, 8, 8)
    before = model(x), model.eval()(x)
    diagnosis = gb.check(model, select="GB501")
    (finding,) = diagnosis.findings
    assert finding.severity == "note"  # a process group may follow
    assert (
        finding.message
        == "SyncBatchNorm on cpu, and no process group is initialized: it synchronizes with no other process"
    )
    diagnosis.fix(notes=True)
    assert type(model[1]) is not nn.SyncBatchNorm
    # Two ways to compute the same in float32: a few units in the last place of values of size 3.
    torch.testing.assert_close(model(x), before[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.train()(x), before[0], rtol=1e-5, atol=1e-5)


def on_a_cpu():
    """Return the findings, what torch's layer raises, and the adopted layer's mean, for each process."""
    torch.manual_seed(0)
    model = sync_without_group.flagged().model
    diagnosis = gb.check(model, select="GB501")
    x = torch.randn(4, 3, 8, 8) + dist.get_rank()
    try:
        model(x)
        raised = ""
    except ValueError as error:
        raised = str(error)
    diagnosis.fix(notes=True)
    model(x)
    return [(f.severity, f.where, f.message) for f in diagnosis.findings], raised, model[1].running_mean


def test_in_several_processes_on_a_cpu_torch_s_layer_raises_and_the_adopted_one_runs():
    first, second = run("tests.diagnostics.rules.test_sync_without_group:on_a_cpu", 2)
    for findings, raised, _ in (first, second):
        message = "SyncBatchNorm on a CPU, in 2 processes: its forward in training raises"
        assert findings == [("error", "1", message)]
        assert raised.startswith("SyncBatchNorm expected input tensor to be on GPU")
    assert torch.equal(first[2], second[2])

"""`watch` with optimizers that other libraries wrapped, and what is left of it when it cannot begin."""

import copy

import pytest
import torch
from torch import nn

import gammabeta as gb
from gammabeta.diagnostics.optimizer_wrappers import optimizer_inside
from gammabeta.monitoring import watch as watching


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2), nn.BatchNorm1d(2))


class Wrapper:
    """An optimizer as apex' FP16_Optimizer is: it holds one, and is none."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def step(self):
        self.optimizer.step()


class Subclass(torch.optim.Optimizer):
    """An optimizer as accelerate's is: of a subclass, without torch's constructor, and with groups of its own."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return [dict(group) for group in self.optimizer.param_groups]

    @param_groups.setter
    def param_groups(self, groups):
        self.optimizer.param_groups = groups

    def step(self, closure=None):
        self.optimizer.step(closure)


def scheduler(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 10)


def accelerated(prepared):
    """Prepare it with accelerate."""
    accelerate = pytest.importorskip("accelerate")
    return accelerate.Accelerator(cpu=True).prepare(prepared)


WRAPPED = {
    "held": Wrapper,
    "subclass": Subclass,
    "twice": lambda optimizer: Wrapper(Subclass(optimizer)),
    "scheduler": scheduler,
    "wrapped scheduler": lambda optimizer: scheduler(optimizer),
    "accelerate": accelerated,
    "accelerate, twice": lambda optimizer: Wrapper(accelerated(optimizer)),
    "accelerate's scheduler": lambda optimizer: accelerated(scheduler(accelerated(optimizer).optimizer)),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_the_steps_of_the_optimizer_inside_are_counted(wrap):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapped = wrap(optimizer)
    assert optimizer_inside(wrapped) is optimizer
    hooks = len(optimizer._optimizer_step_post_hooks)
    with gb.watch(model, wrapped) as watch:
        for _ in range(6):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().sum().backward()
            (optimizer if isinstance(wrapped, torch.optim.lr_scheduler.LRScheduler) else wrapped).step()
            if not hasattr(wrapped, "param_groups"):
                optimizer.step()
        assert watch.watched.steps >= 6
        assert watch.watched.norms["1"].stepped or watch.diagnosis(select="GB4").findings == ()
    assert len(optimizer._optimizer_step_post_hooks) == hooks


@pytest.mark.parametrize("given", [object(), Wrapper(None), Wrapper(Wrapper(3))])
def test_what_holds_no_optimizer_is_refused(given):
    with pytest.raises(TypeError) as raised:
        gb.watch(network(), given)
    assert str(raised.value) == (
        f"watch: expected optimizer as a torch.optim.Optimizer or a list of them, got a {type(given).__qualname__}."
    )


def test_a_wrapper_that_holds_itself_ends():
    wrapper = Wrapper(None)
    wrapper.optimizer = wrapper
    assert optimizer_inside(wrapper) is None


def hooks(model, optimizer):
    """Count the hooks on a model and its optimizer."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    of_modules = [len(getattr(module, kind)) for module in model.modules() for kind in kinds]
    of_parameters = [len(p._post_accumulate_grad_hooks or ()) for p in model.parameters()]
    return of_modules, of_parameters, len(optimizer._optimizer_step_post_hooks)


class BrokenError(Exception):
    """Raised by a step of entering."""


def failing(function, at, calls):
    """Return the function, which raises at one of its calls; `calls` counts them."""

    def called(*args, **kwargs):
        calls.append(function)
        if len(calls) == at + 1:
            raise BrokenError
        return function(*args, **kwargs)

    return called


STEPS = {
    "record": (watching, "record_model"),
    "probe": (watching, "Probe"),
    "ranks": (watching, "RankRecords"),
    "hook after": (watching, "hook_after"),
    "hook before": (watching, "hook_before"),
    "gradient": (torch.Tensor, "register_post_accumulate_grad_hook"),
    "stepping": (watching, "stepping"),
    "step": (torch.optim.Optimizer, "register_step_post_hook"),
    "parameters": (watching.FiniteWatch, "begin"),
}


@pytest.mark.parametrize(("owner", "name"), STEPS.values(), ids=STEPS)
def test_a_watch_that_cannot_begin_leaves_no_hooks(owner, name, monkeypatch):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.register_forward_hook(lambda *_: None)  # the user's own stay
    optimizer.register_step_post_hook(lambda *_: None)
    before = hooks(model, optimizer)
    original, failed = getattr(owner, name), 0
    for at in range(10):
        calls = []
        watch = gb.watch(model, optimizer)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, failing(original, at, calls))
            try:
                watch.__enter__()
            except BrokenError:
                failed += 1
                assert hooks(model, optimizer) == before, f"call {at} of {name}"
            else:
                watch.__exit__()
                break
        with watch:  # it can begin once the reason is gone
            model(torch.randn(8, 4)).sum().backward()
            optimizer.step()
        assert watch.watched.steps == 1
        assert hooks(model, optimizer) == before
    assert failed == len(calls) > 0


def test_the_record_of_a_copy_is_unaffected():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gb.watch(model, Wrapper(optimizer)) as watch:
        copy.deepcopy(model)(torch.randn(8, 4))
    assert watch.watched.norms["1"].calls == 0

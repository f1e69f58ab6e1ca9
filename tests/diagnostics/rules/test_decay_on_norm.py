"""GB401: what decay does to γ, and that the fix removes it and keeps the optimizer's state."""

import functools
import gc
import math

import pytest
import torch
from torch import nn

import gammabeta as gb
from gammabeta.diagnostics import optimizer_holders
from gammabeta.diagnostics.rules import decay_on_norm


@pytest.mark.parametrize("fixed", [False, True])
def test_a_scale_without_gradient_decays_to_a_third_and_after_the_fix_it_stays(fixed):
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.05)
    if fixed:
        gb.check(model, optimizer=optimizer, select="GB401").fix()
    for _ in range(1000):
        model[1].weight.grad = torch.zeros(8)
        optimizer.step()
    # (1 − lr·λ)¹⁰⁰⁰ = 0.999¹⁰⁰⁰, in a thousand roundings of float32.
    expected = 1.0 if fixed else math.exp(1000 * math.log1p(-0.001))
    assert model[1].weight.tolist() == pytest.approx([expected] * 8, rel=1e-4)


def test_the_fix_makes_one_group_and_undo_restores_the_groups():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.BatchNorm1d(8))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05, lr=0.1)
    groups = [list(map(id, group["params"])) for group in optimizer.param_groups]
    change = gb.check(model, optimizer=optimizer, select="GB401").fix()
    assert [len(group["params"]) for group in optimizer.param_groups] == [4, 4]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    assert {key: optimizer.param_groups[1][key] for key in ("lr", "betas", "eps")} == {
        "lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8,
    }  # fmt: skip
    assert not gb.check(model, optimizer=optimizer, select="GB401").findings
    change.undo()
    assert [list(map(id, group["params"])) for group in optimizer.param_groups] == groups


def test_what_requires_no_gradient_or_is_in_a_group_without_decay_is_not_found():
    model = decay_on_norm.flagged().model
    model[1].requires_grad_(False)
    assert not gb.check(model, optimizer=torch.optim.AdamW(model.parameters()), select="GB401").findings
    model[1].requires_grad_(True)
    assert not gb.check(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), select="GB401").findings


def test_the_decay_is_in_the_message():
    example = decay_on_norm.flagged()
    (finding,) = gb.check(example.model, optimizer=[example.optimizer], select="GB401").findings
    assert finding.message == "weight decay of 0.05 on weight and 0.05 on bias"
    assert finding.evidence == {"weight": 0.05, "bias": 0.05}


class Warmup:
    """A scheduler of one's own that keeps a value for each group and leaves no trace in the optimizer."""

    def __init__(self, optimizer):
        self.optimizer, self.rates = optimizer, [group["lr"] for group in optimizer.param_groups]


class WarmupScheduler(Warmup):
    pass


class Slots:
    __slots__ = ("groups", "rates")

    def __init__(self, optimizer):
        self.groups, self.rates = optimizer.param_groups, (0.5,)


def closure(optimizer):
    base = [group["lr"] for group in optimizer.param_groups]

    def step(factor):
        for group, rate in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = rate * factor

    return step


def generator(optimizer):
    base = [group["lr"] for group in optimizer.param_groups]
    while True:
        for i, group in enumerate(optimizer.param_groups):
            group["lr"] = base[i]
        yield


def started(optimizer):
    steps = generator(optimizer)
    next(steps)
    return steps


class InAList:
    def __init__(self, optimizer):
        self.optimizers, self.base = [optimizer], [torch.tensor(0.1)]


SCHEDULERS = {
    "an object of one's own": Warmup,
    "an object with slots and the groups": Slots,
    "a closure": closure,
    "a generator": started,
    "a partial": lambda o: functools.partial(print, o, [0.1]),
    "an object with a list of optimizers": InAList,
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (step + 1)),
    "cyclic": lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.1, 0.2, cycle_momentum=False),
    "plateau": torch.optim.lr_scheduler.ReduceLROnPlateau,
    "by hand": WarmupScheduler,
    "a step taken": lambda o: o.step(),
}


@pytest.mark.parametrize("how", SCHEDULERS)
@pytest.mark.parametrize("built", ["before the check", "between check and fix"])
def test_an_optimizer_that_a_scheduler_holds_stays_as_it_is_and_the_call_to_make_is_said(how, built):
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.LayerNorm(8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.05)
    model(torch.randn(4, 4)).square().sum().backward()
    scheduler = SCHEDULERS[how](optimizer) if built == "before the check" else None
    diagnosis = gb.check(model, optimizer=optimizer, select="GB401")
    if built != "before the check":
        scheduler = SCHEDULERS[how](optimizer)
    groups = [(list(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
    change = diagnosis.fix()
    assert change.changed == []
    assert "gammabeta.parameter_groups(model, weight_decay=0.05)" in change.left["1"]
    held = ("has taken a step",) if how == "a step taken" else ("holds the optimizer", "holds the list of its groups")
    assert all(any(reason in change.left[name] for reason in held) for name in ("1", "2"))
    now = [(list(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
    assert all(
        one[1] == other[1] and all(a is b for a, b in zip(one[0], other[0], strict=True))
        for one, other in zip(groups, now, strict=True)
    )
    optimizer.step()
    if isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler):
        scheduler.step(*([1.0] if how == "plateau" else []))


def test_a_new_optimizer_without_a_scheduler_is_mended_and_what_it_saves_loads():
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    change = gb.check(model, optimizer=optimizer, select="GB401").fix()
    assert change.changed == ["1"]
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    model(torch.randn(4, 4)).square().sum().backward()
    optimizer.step()
    scheduler.step()
    optimizer.load_state_dict(optimizer.state_dict())


class Trainer:
    """Holds the optimizer, and nothing that has a value for each group."""

    def __init__(self, optimizer):
        self.optimizer, self.losses, self.names, self.betas = optimizer, [], ["a"], (0.9, 0.999)


def test_what_only_holds_the_optimizer_does_not_hinder_the_fix():
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    trainer = Trainer(optimizer)
    change = gb.check(model, optimizer=optimizer, select="GB401").fix()
    assert change.changed == ["1"]
    del trainer


@pytest.mark.parametrize("how", ["lambda", "a closure", "an object of one's own"])
def test_the_fix_is_not_undone_while_a_scheduler_has_its_groups(how):
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.05)
    change = gb.check(model, optimizer=optimizer, select="GB401").fix()
    scheduler = SCHEDULERS[how](optimizer)
    with pytest.raises(RuntimeError, match=r"^fix: cannot be undone now: .* holds the optimizer.*: delete it first"):
        change.undo()
    assert len(optimizer.param_groups) == 2
    if how == "lambda":
        optimizer.step()
        scheduler.step()
    del scheduler
    gc.collect()
    change.undo()
    assert len(optimizer.param_groups) == 1


def test_the_search_for_a_scheduler_is_made_once_for_each_fix(monkeypatch):
    model = nn.Sequential(nn.Linear(4, 8), *(nn.LayerNorm(8) for _ in range(5)))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    diagnosis = gb.check(model, optimizer=optimizer, select="GB401")
    searches = []
    monkeypatch.setattr(optimizer_holders, "_search", lambda optimizer: searches.append(optimizer))
    assert len(diagnosis.fix().changed) == 5
    assert len(searches) == 1


class ScalesByOnePlusWeightRMSNorm(nn.Module):
    def __init__(self, size, offset):
        super().__init__()
        self.weight, self.eps, self.offset = nn.Parameter(torch.full((size,), 1.0 - offset)), 1e-6, offset

    def forward(self, x):
        scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps)
        return (x.float() * scale * (self.offset + self.weight.float())).type_as(x)


@pytest.mark.parametrize(("offset", "found"), [(0.0, True), (1.0, False)])
def test_decay_that_pulls_a_scale_to_1_is_not_found(offset, found):
    model = nn.Sequential(nn.Linear(4, 8), ScalesByOnePlusWeightRMSNorm(8, offset))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    assert bool(gb.check(model, optimizer=optimizer, select="GB401").findings) is found


class OnePlusLayerNorm(nn.LayerNorm):
    """γ − 1 in a subclass of torch's class, as NeMo's LayerNorm1P."""

    def forward(self, x):
        return nn.functional.layer_norm(x, self.normalized_shape, 1 + self.weight, self.bias, self.eps)


class OnePlusGroupNorm(nn.GroupNorm):
    """γ − 1 in a norm of channels, of which no form is known."""

    def forward(self, x):
        return nn.functional.group_norm(x, self.num_groups, 1 + self.weight, self.bias, self.eps)


class OnePlusNormAct(ScalesByOnePlusWeightRMSNorm):
    """A norm that holds its activation."""

    def __init__(self, size):
        super().__init__(size, 1.0)
        self.act = nn.Identity()

    def forward(self, x):
        return self.act(super().forward(x))


@pytest.mark.parametrize(
    "norm", [OnePlusLayerNorm(8), OnePlusGroupNorm(2, 8), OnePlusNormAct(8)], ids=lambda norm: type(norm).__name__
)
def test_so_it_is_in_any_class_and_the_shift_is_found_still(norm):
    model = nn.Sequential(nn.Linear(4, 8), norm)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    found = gb.check(model, optimizer=optimizer, select="GB401").findings
    has_shift = getattr(norm, "bias", None) is not None
    assert [finding.message for finding in found] == ["weight decay of 0.05 on bias"] * has_shift


class OnePlus(nn.Module):
    """The same under a name that says nothing."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


class CentredLayerNorm(nn.LayerNorm):
    def __init__(self, size):
        super().__init__(size)
        nn.init.zeros_(self.weight)

    def forward(self, x):
        return nn.functional.layer_norm(x, self.normalized_shape, 1 + self.weight, self.bias, self.eps)


class CentredBatchNorm(nn.BatchNorm1d):
    def __init__(self, size):
        super().__init__(size)
        nn.init.zeros_(self.weight)

    def forward(self, x):
        mean, var = self.running_mean, self.running_var
        scale = 1 + self.weight
        return nn.functional.batch_norm(x, mean, var, scale, self.bias, self.training, self.momentum, self.eps)


@pytest.mark.parametrize("cls", [OnePlus, CentredLayerNorm, CentredBatchNorm])
def test_the_scale_of_one_plus_weight_is_known_by_what_the_layer_does(cls):
    """β of such a norm decays to 0 like any other, and is found."""
    model = nn.Sequential(nn.Linear(4, 8), cls(8))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    found = gb.check(model, optimizer=optimizer, select="GB401").findings
    assert [finding.message for finding in found] == ([] if cls is OnePlus else ["weight decay of 0.05 on bias"])


class ByIndex:
    """A schedule that knows one group."""

    def __init__(self, optimizer):
        self.optimizer, self.steps = optimizer, 0

    def step(self):
        self.steps += 1
        self.optimizer.param_groups[0]["lr"] = 0.1 / self.steps


class ByDict:
    def __init__(self, optimizer):
        self.of = {"optimizer": optimizer}
        self.rates = {i: group["lr"] for i, group in enumerate(optimizer.param_groups)}

    def __call__(self):
        for i, group in enumerate(self.of["optimizer"].param_groups):
            group["lr"] = self.rates[i]


@pytest.mark.parametrize("schedule", [ByIndex, ByDict])
def test_a_schedule_of_one_s_own_keeps_the_groups_that_it_knows(schedule):
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    held = schedule(optimizer)
    diagnosis = gb.check(model, optimizer=optimizer, select="GB401")
    assert not diagnosis.fix().changed
    assert len(optimizer.param_groups) == 1
    del held
    assert gb.check(model, optimizer=optimizer, select="GB401").fix().changed

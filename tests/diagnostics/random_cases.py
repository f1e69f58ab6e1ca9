"""Random cases for the fix: a network, trained a little, with one to three faults planted and all that goes with it."""

from __future__ import annotations

import random
from typing import Any

import torch
from tests.diagnostics.planted_faults import BATCH_NORMS, IN_CONSTRUCTION, IN_PLACE, IN_WEIGHTS, NORMS, Case, some
from tests.diagnostics.random_networks import Traits, WithAverage, data, random_network
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.optim import lr_scheduler as schedulers
from torch.utils.data import DataLoader, TensorDataset

import gammabeta as gb

BATCHES, SIZE = 4, 24


def build(seed: int) -> Case:
    """Return the case of a seed: the same one at each call."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    traits = Traits()
    faults = draw.sample([*IN_CONSTRUCTION, *IN_WEIGHTS, *IN_PLACE], draw.choice((1, 1, 2, 2, 3)))
    traits.bias, traits.dropout = "bias" in faults, "dropout" in faults
    traits.shared, traits.tracks = "shared" in faults, "no running statistics" not in faults
    traits.own = draw.random() < 0.15
    traits.words += ["norms of a subclass"] if traits.own else []
    traits.words += [fault for fault in faults if isinstance(fault, str)]
    model, shape = random_network(draw, traits)
    case = Case(model, traits, data(shape, BATCHES, SIZE, seed))
    trained = draw.random() < 0.8
    if trained:
        _train_a_little(case)
    else:
        traits.words.append("fresh")
    if draw.random() < 0.1:
        linear = [module for module in model.modules() if type(module) in (nn.Linear, nn.Conv2d)]
        parametrizations.weight_norm(draw.choice(linear))
        traits.words.append("weight norm")
    if draw.random() < 0.3:
        gb.adopt(case.model)
        traits.words.append("adopted")
    _plant(case, draw, [fault for fault in faults if fault in IN_WEIGHTS])
    if trained:
        _settle(case)
    _plant(case, draw, [fault for fault in faults if fault in IN_PLACE])
    _layout_and_dtype(case, draw)
    _freeze(case, draw)
    _optimize(case, draw)
    _give(case, draw)
    case.model.train(draw.random() < 0.6)
    if case.model.training:
        case.after_train()
    traits.words.append("training" if case.model.training else "evaluation")
    return case


@torch.no_grad()
def _plant(case: Case, draw: random.Random, faults: list[Any]) -> None:
    case.traits.words += [fault.__name__ for fault in faults if fault(case, draw)]


def loss_of(case: Case, x: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of one batch."""
    outputs = case.model(x)
    logits = (outputs[0] if isinstance(outputs, tuple) else outputs).float()
    return F.cross_entropy(logits, labels)


def train_step(case: Case) -> None:
    """Take one step as the user's training loop does, through the scheduler."""
    case.model.train()
    case.after_train()
    x, labels = case.batches[0]
    for optimizer in case.optimizers:
        optimizer.zero_grad()
    loss = loss_of(case, x, labels)
    if loss.requires_grad:
        loss.backward()
    for optimizer in case.optimizers:
        optimizer.step()
    if case.scheduler is not None:
        case.scheduler.step()
    if case.plateau is not None:
        case.plateau.step(loss.detach())


def _train_a_little(case: Case) -> None:
    """Train for some steps, and give the statistics of the trained weights."""
    case.model.train()
    optimizer = torch.optim.Adam(case.model.parameters(), lr=0.01)
    for x, labels in 2 * case.batches:
        optimizer.zero_grad()
        loss_of(case, x, labels).backward()
        optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def _settle(case: Case) -> None:
    """Give the statistics of these weights; not where the layer refuses to be trained, as torch's does with ε = 0."""
    if any(norm.eps == 0 for norm in case.norms()):
        return
    case.model.train()
    momenta = [(norm, norm.momentum) for norm in case.tracking()]
    for norm, _ in momenta:
        norm.reset_running_stats()
        norm.momentum = None
    for x, _ in case.batches:
        case.model(x)
    for norm, momentum in momenta:
        norm.momentum = momentum


def _layout_and_dtype(case: Case, draw: random.Random) -> None:
    if draw.random() < 0.25 and case.batches[0][0].ndim == 4:
        case.model.to(memory_format=torch.channels_last)
        case.batches = [(x.to(memory_format=torch.channels_last), y) for x, y in case.batches]
        case.traits.words.append("channels_last")
    if draw.random() < 0.15:
        case.model.bfloat16()
        case.batches = [(x.bfloat16(), y) for x, y in case.batches]
        case.traits.words.append("bfloat16")


def _freeze(case: Case, draw: random.Random) -> None:
    style = draw.choice((None, None, None, None, "gradients", "eval", "gb.freeze", "Lightning", "head only"))
    if style is None:
        return
    case.traits.words.append(f"backbone frozen ({style})")
    network, backbone = case.network, case.network.backbone
    prefix = "student.backbone." if isinstance(case.model, WithAverage) else "backbone."
    case.meant_frozen = frozenset(name for name, _ in case.model.named_parameters() if name.startswith(prefix))
    if style == "head only":
        return
    backbone.requires_grad_(False)
    if style == "eval":
        case.after_train = backbone.eval
    elif style == "gb.freeze" and case.norms(inside=backbone):
        gb.freeze(network, where=lambda name, module: name.startswith("backbone.") and isinstance(module, BATCH_NORMS))
    elif style == "Lightning":
        for norm in case.norms(inside=backbone):
            norm.track_running_stats = False


def _optimize(case: Case, draw: random.Random) -> None:
    head_only = any("head only" in word for word in case.traits.words)
    part = case.network.head if head_only else case.network
    decay = 0.05 if case.decay else 0.0
    parameters = [parameter for parameter in part.parameters() if parameter.requires_grad]
    if case.missing:
        lost = {p for norm in some(draw, case.norms(*NORMS, inside=part)) for p in norm.parameters()}
        parameters = [parameter for parameter in parameters if parameter not in lost]
    if not parameters or (draw.random() < 0.2 and not (case.decay or case.missing or case.twice)):
        return
    groups: Any = parameters
    if not (case.decay or case.missing) and draw.random() < 0.5:
        groups = gb.parameter_groups(part, 0.05)
    elif draw.random() < 0.3 and len(parameters) > 1:
        half = len(parameters) // 2
        groups = [{"params": parameters[:half]}, {"params": parameters[half:], "lr": 0.003}]
    cls = draw.choice(("SGD", "Adam", "AdamW"))
    more = {"momentum": 0.9} if cls == "SGD" else {}
    case.optimizers = [getattr(torch.optim, cls)(groups, lr=0.001, weight_decay=decay, **more)]
    case.traits.words.append(cls)
    norms = [norm for norm in case.norms(*NORMS, inside=part) if any(p.requires_grad for p in norm.parameters())]
    if case.twice and norms:
        case.optimizers.append(torch.optim.SGD(draw.choice(norms).parameters(), lr=0.001))
    if draw.random() < 0.5:
        _steps_of_the_optimizer(case)
        case.traits.words.append("with state")
    _schedule(case, draw, cls)


def _steps_of_the_optimizer(case: Case) -> None:
    """Give the optimizers their state, and leave the weights where they are."""
    for optimizer in case.optimizers:
        lrs = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = 0.0
            for parameter in group["params"]:
                parameter.grad = torch.full_like(parameter, 0.01) if parameter.requires_grad else None
        optimizer.step()
        optimizer.zero_grad()
        for group, lr in zip(optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr


def _schedule(case: Case, draw: random.Random, cls: str) -> None:
    kind = draw.choice((None, None, None, "LambdaLR", "Cosine", "OneCycle", "Sequential", "Cyclic", "Plateau"))
    optimizer = case.optimizers[0]
    groups = len(optimizer.param_groups)
    if kind is None:
        return
    if kind == "Plateau":
        # Nothing in the optimizer shows that it is held; the training has to go on.
        case.plateau = schedulers.ReduceLROnPlateau(optimizer)
    elif kind == "LambdaLR":
        case.scheduler = schedulers.LambdaLR(optimizer, [lambda step: min(1.0, (step + 1) / 10)] * groups)
    elif kind == "Cosine":
        case.scheduler = schedulers.CosineAnnealingLR(optimizer, 20)
    elif kind == "OneCycle":
        case.scheduler = schedulers.OneCycleLR(optimizer, [0.01] * groups, total_steps=30)
    elif kind == "Sequential":
        warmup = schedulers.LinearLR(optimizer, 0.1, total_iters=5)
        case.scheduler = schedulers.SequentialLR(
            optimizer, [warmup, schedulers.CosineAnnealingLR(optimizer, 20)], milestones=[5]
        )
    else:
        case.scheduler = schedulers.CyclicLR(
            optimizer, [1e-4] * groups, [1e-2] * groups, step_size_up=3, cycle_momentum=cls == "SGD"
        )
    case.traits.words.append(kind)


def _give(case: Case, draw: random.Random) -> None:
    """Choose what the check is given: inputs, a loader in one of the usual forms, both, or neither."""
    if draw.random() < 0.75:
        case.inputs = case.batches[0][0]
        case.traits.words.append("inputs")
    form = draw.choice((None, "x", "(x,)", "[x]", "(x, y)", "(x, y)", "dict", "DataLoader"))
    if form == "dict" and case.inputs is not None:
        case.inputs = {"x": case.inputs}
    if form is None:
        return
    case.traits.words.append(f"loader of {form}")
    pairs = case.batches
    if form == "DataLoader":
        x, y = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        case.loader = DataLoader(TensorDataset(x, y), batch_size=SIZE)
        return
    forms: dict[str, Any] = {
        "x": lambda x, _: x,
        "(x,)": lambda x, _: (x,),
        "[x]": lambda x, _: [x],
        "(x, y)": lambda x, y: (x, y),
        "dict": lambda x, _: {"x": x},
    }
    case.loader = [forms[form](x, y) for x, y in pairs]

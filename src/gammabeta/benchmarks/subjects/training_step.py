"""A whole training step of timm's networks: forward, loss, backward, SGD, with torch's layers and with ours.

Ours is a copy of the same network in which only the class of the norms differs. timm's mobile networks have norm and
activation as one layer (`BatchNormAct2d`), which becomes one layer of ours with an activation. ResNet-50 has plain
BatchNorm2d. Before anything is timed, outputs, gradients and running statistics of both are compared with those in
float64: ours may be at most four times as far from them as torch's.

torch.compile does not take part, since the ratio is about eager layers.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gammabeta.benchmarks.contest import OURS, TORCH, Call, Contestant, Field, Row
from gammabeta.benchmarks.ring import LAYOUTS
from gammabeta.layers.batch_norm import BatchNorm2d
from gammabeta.statistics import Batch

UNIT = "ms"

SHAPE = (16, 3, 160, 160)
BATCHES = 4  # of images and labels, which the steps cycle through
# The network, and the limit of our time over torch's.
NETWORKS = (("mobilenetv2_100", 1 / 1.15), ("efficientnet_b0", 1 / 1.15), ("resnet50", 1.0))
# The layer that a network has after its norm, and our name of it; leaky_relu has its slope too.
ACTIVATIONS: dict[type[nn.Module], str | None] = {
    nn.Identity: None,
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.LeakyReLU: "leaky_relu",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
}
# How many times farther from float64 than torch's float32: roundings in another order, and kinks that they cross.
FARTHER = 4
# Relative. A value within a rounding of 0 may fall on the other side of a relu, in torch's arithmetic as in ours. One
# such value in ResNet-50 changed its gradients by 1.4e-5, where rounding alone changes both by 1.3e-6.
LEAST = 1e-4

_libraries: list[torch.library.Library] = []  # a schema lives as long as the object that declared it


def missing() -> str | None:
    if importlib.util.find_spec("timm") and importlib.util.find_spec("torchvision"):
        return None
    return "it needs timm and torchvision: pip install --no-deps timm torchvision"


def rows(quick: bool) -> list[Row]:
    """Return each network in both layouts; quick: only the first."""
    return [
        _row(name, layout, at_most) for name, at_most in (NETWORKS[:1] if quick else NETWORKS) for layout in LAYOUTS
    ]


def _row(name: str, layout: str, at_most: float) -> Row:
    def build(compiled: bool) -> Field:
        torch.manual_seed(0)
        theirs = load_timm().create_model(name).train()
        ours = with_our_layers(theirs)
        x, labels = torch.randn(SHAPE), torch.randint(1000, SHAPE[:1])
        check_equal(ours, theirs, x.contiguous(memory_format=LAYOUTS[layout]), labels)
        return Field({OURS: steps(ours, layout), TORCH: steps(theirs, layout)})

    return Row(f"{name}, training step", SHAPE, torch.float32, layout, build, at_most_of_torch=at_most)


def steps(model: nn.Module, layout: str) -> Contestant:
    """Return training steps of the network, on other images each time. Model and images get the layout."""
    generator = torch.Generator().manual_seed(0)
    model.to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
    images = [torch.randn(SHAPE, generator=generator).contiguous(memory_format=LAYOUTS[layout]) for _ in range(BATCHES)]
    labels = [torch.randint(1000, SHAPE[:1], generator=generator) for _ in range(BATCHES)]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def contestant(number: int) -> Call:
        x, y = images[number % BATCHES], labels[number % BATCHES]

        def step() -> None:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

        return step

    return contestant


def with_our_layers(model: nn.Module) -> nn.Module:
    """Return a copy of the network whose BatchNorm2d are ours: the same modules and parameters, another class.

    A subclass of BatchNorm2d with its own forward is changed where it is a norm and then an activation, as in timm's
    BatchNormAct2d (`act`, and a `drop` that does nothing). Its activation becomes that of our layer.

    Raises:
        ValueError: a subclass of BatchNorm2d that is built in another way.
    """
    model = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            activation, slope = _activation(name, module)
            module.__class__ = BatchNorm2d
            changed: Any = module
            # What our constructor sets in addition.
            changed.activation = activation
            changed.activation_slope = slope
            changed.statistics = Batch()
    return model


def _activation(name: str, norm: nn.BatchNorm2d) -> tuple[str | None, float]:
    """Return name and slope of the activation that a norm's own forward applies."""
    if type(norm) is nn.BatchNorm2d:
        return None, 0.01
    act: Any = getattr(norm, "act", None)
    drop = getattr(norm, "drop", None)
    if type(norm).__name__ != "BatchNormAct2d" or type(drop) is not nn.Identity or type(act) not in ACTIVATIONS:
        raise ValueError(
            f"{name}: expected torch's BatchNorm2d, or timm's BatchNormAct2d with an idle drop and an activation "
            f"out of {', '.join(sorted(known.__name__ for known in ACTIVATIONS))}; got {type(norm).__name__} with drop "
            f"{type(drop).__name__} and act {type(act).__name__}, which no layer of ours stands for."
        )
    return ACTIVATIONS[type(act)], getattr(act, "negative_slope", 0.01)


def check_equal(ours: nn.Module, theirs: nn.Module, x: Tensor, labels: Tensor) -> None:
    """Compare one training forward and backward of both networks with torch's in float64. Both keep their state.

    Raises:
        RuntimeError: output, gradients or running statistics of ours are farther from float64's than `FARTHER` times
            torch's and than `LEAST`, both relative in the Euclidean norm.
    """
    exact = _one_pass(copy.deepcopy(theirs).double(), x.double(), labels)
    by_torch = _one_pass(copy.deepcopy(theirs), x, labels)
    by_us = _one_pass(copy.deepcopy(ours), x, labels)
    for what, true in exact.items():
        size = true.norm()
        torch_off, off = ((found[what].double() - true).norm() / size for found in (by_torch, by_us))
        if not off <= max(FARTHER * torch_off, LEAST):
            raise RuntimeError(
                f"the {what} with our layers are {off:.1e} from float64's and {torch_off:.1e} with torch's: "
                "expected the same to rounding, so nothing was timed."
            )


def _one_pass(model: nn.Module, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    y = model(x)
    F.cross_entropy(y, labels).backward()
    return {
        "outputs": y.detach(),
        "gradients": _flat([p.grad for p in model.parameters() if p.grad is not None]),
        "running statistics": _flat(
            [b for n, b in model.named_buffers() if n.endswith(("running_mean", "running_var"))]
        ),
    }


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors]) if tensors else torch.zeros(1)


def load_timm() -> Any:
    """Import timm, also where its torchvision is built for CUDA and torch is not.

    Such a torchvision misses its operators and cannot be imported. With their schemas declared it can, and the networks
    work, since they need none of these operators.
    """
    try:
        return importlib.import_module("timm")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for half_imported in [name for name in sys.modules if name.partition(".")[0] in ("timm", "torchvision")]:
        del sys.modules[half_imported]
    library = torch.library.Library("torchvision", "FRAGMENT")
    _libraries.append(library)
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        library.define(schema)
    return importlib.import_module("timm")

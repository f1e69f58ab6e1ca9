"""The networks that trials train: a deep MLP, a small ResNet, or the user's own model."""

import hashlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gammabeta.lab.images.arms import ArmError, batch_norms, put
from gammabeta.lab.images.task import Task
from gammabeta.lab.norms import NORMS, named, norm
from gammabeta.lab.task import TaskError
from gammabeta.target import TargetError, import_target

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}


class Dropout(nn.Module):
    """Dropout with its own random generators, one for each member's part of the channels.

    Networks trained together therefore drop what each of them drops on its own. Scales in training, by 1/(1 − rate).

    Source: Srivastava et al. 2014.
    """

    def __init__(self, rate: float, seeds: Sequence[int]) -> None:
        super().__init__()
        self.rate, self.seeds = rate, tuple(seeds)
        self.generators: list[torch.Generator] = []

    def forward(self, x_nc: Tensor) -> Tensor:
        if not self.training:
            return x_nc
        self.generators = self.generators or [torch.Generator().manual_seed(seed) for seed in self.seeds]
        keep = x_nc.new_empty(len(self.seeds), len(x_nc), x_nc.shape[1] // len(self.seeds))
        for part, generator in zip(keep, self.generators, strict=True):
            part.bernoulli_(1 - self.rate, generator=generator)
        return x_nc * keep.div_(1 - self.rate).transpose(0, 1).flatten(1)


class MLP(nn.Module):
    """A multilayer perceptron: ``depth`` hidden layers of ``width``, then a linear classifier.

    A hidden layer is linear, norm, activation and, where ``dropout`` is positive, Dropout. ``dropout_at`` says where:
    after ``"every"`` hidden layer, so before each norm but the first, or after the ``"last"``, so after all norms.
    """

    def __init__(
        self,
        inputs: int,
        classes: int,
        *,
        depth: int,
        width: int,
        activation: str,
        norm_name: str,
        dropout: float = 0.0,
        dropout_at: str = "every",
        seed: int = 0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(depth):
            layers += [
                nn.Linear(inputs if index == 0 else width, width),
                norm(norm_name, width, 0),
                ACTIVATIONS[activation](),
            ]
            if dropout and (dropout_at == "every" or index == depth - 1):
                layers.append(Dropout(dropout, [1000 * seed + index]))
        self.hidden = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.hidden(x.flatten(1)))
        return scores


class Block(nn.Module):
    """Two 3 × 3 convolutions with a skip connection, which has a 1 × 1 convolution where shapes change (He 2015)."""

    def __init__(self, inputs: int, channels: int, stride: int, norm_name: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.norm1 = norm(norm_name, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = norm(norm_name, channels)
        self.skip = nn.Identity() if stride == 1 else nn.Conv2d(inputs, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(h)) + self.skip(x))


class ResNet(nn.Module):
    """A small ResNet: five 3 × 3 convolutions with 12 and 24 channels; the first one halves images above 16 pixels."""

    def __init__(self, shape: tuple[int, int, int], classes: int, *, norm_name: str, width: int = 12) -> None:
        super().__init__()
        stride = 2 if max(shape[1:]) > 16 else 1
        self.stem = nn.Conv2d(shape[0], width, 3, stride, 1, bias=False)
        self.norm = norm(norm_name, width)
        self.blocks = nn.Sequential(Block(width, width, 1, norm_name), Block(width, 2 * width, 2, norm_name))
        self.classifier = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.blocks(functional.relu(self.norm(self.stem(x))))
        scores: Tensor = self.classifier(h.mean(dim=(2, 3)))
        return scores


def initialize(model: nn.Module, activation: str, generator: torch.Generator, gain: float = 1.0) -> None:
    """Initialize the weights by He's rule for relu and by Xavier's with a gain for tanh and sigmoid; biases are 0.

    The last linear layer has gain 1. All other weights are multiplied by ``gain``, which is 1 unless a claim is about
    it. Weights are drawn in the order of the modules, so that arms that differ only in their norms start from the same
    weights. Sigmoid's gain is 4, the inverse of its slope at 0. torch's calculate_gain returns 1, with which signals
    vanish.

    Source: Glorot & Bengio 2010, eq. 16; He 2015, eq. 10.
    """
    weighted = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    for module in weighted:
        fan_in = module.weight[0].numel()
        fan_out = module.weight.shape[0] * module.weight[0, 0].numel()
        if module is weighted[-1]:
            std = math.sqrt(1 / fan_in)
        elif activation == "relu":
            std = math.sqrt(2 / fan_in)
        else:
            std = {"tanh": 5 / 3, "sigmoid": 4.0}[activation] * math.sqrt(2 / (fan_in + fan_out))
        with torch.no_grad():
            module.weight.normal_(0.0, std if module is weighted[-1] else gain * std, generator=generator)
            if module.bias is not None:
                module.bias.zero_()


def build(task: Task, network: Mapping[str, Any], norm_name: str, seed: int) -> nn.Module:
    """Build the network that a trial's settings describe, initialized by ``seed`` the same for every norm.

    Args:
        network: ``{"kind": "mlp", "depth", "width", "activation", "init"}``, ``{"kind": "resnet", "init"}``, or what
            :func:`user_network` returned. ``init`` is ``"matched"`` (:func:`initialize`) or ``"default"`` (torch's).
            An MLP may also have ``"gain"``, ``"dropout"`` and ``"dropout_at"``.

    Raises:
        TaskError: a BatchNorm of the user's model cannot be replaced by the arm's norm.
    """
    torch.manual_seed(seed)
    if network["kind"] == "user":
        return _built_by_user(network["model"], task, norm_name)
    model: nn.Module
    if network["kind"] == "resnet":
        model, activation = ResNet(task.shape, task.classes, norm_name=norm_name), "relu"
    else:
        activation = network["activation"]
        model = MLP(
            math.prod(task.shape),
            task.classes,
            depth=network["depth"],
            width=network["width"],
            activation=activation,
            norm_name=norm_name,
            dropout=network.get("dropout", 0.0),
            dropout_at=network.get("dropout_at", "every"),
            seed=seed,
        )
    if network["init"] == "matched":
        initialize(model, activation, torch.Generator().manual_seed(seed), network.get("gain", 1.0))
    return model


def describe(network: Mapping[str, Any]) -> str:
    """Return the network's name for sentences and legends."""
    if network["kind"] == "user":
        where, _, name = str(network["model"]).rpartition(":")
        return f"{Path(where).name}:{name}"
    init = "" if network["init"] == "matched" else ", torch's default init"
    if network["kind"] == "resnet":
        return f"ResNet{init}"
    return f"MLP {network['depth']} layers {network['activation']}{init}"


# --- the user's model ---


def _import(target: str) -> tuple[ModuleType, str]:
    if ":" not in target:
        raise TaskError(f"--model {target}: expected package.module:function or file.py:function.")
    try:
        return import_target(target)
    except TargetError as error:
        raise TaskError(f"--model {error}") from error


def load_builder(target: str) -> Callable[..., nn.Module]:
    """Import the function that ``target`` names.

    Raises:
        TaskError: it cannot be imported, does not exist, or cannot be called.
    """
    module, name = _import(target)
    if not hasattr(module, name):
        raise TaskError(f"--model {target}: {target.rpartition(':')[0]} has no {name}.")
    builder: Callable[..., nn.Module] = getattr(module, name)
    if not callable(builder):
        raise TaskError(f"--model {target}: expected a function {_FORMS}, got {type(builder).__name__}.")
    return builder


_FORMS = "build(input_shape, classes, norm) or build(input_shape, classes)"


def takes_norm(builder: Callable[..., nn.Module]) -> bool:
    """Whether a user's function takes ``norm``: it has a parameter of that name, or a third one without a default.

    Raises:
        TypeError: it takes neither (input_shape, classes, norm) nor (input_shape, classes).
    """
    try:
        signature = inspect.signature(builder)
    except ValueError:  # builtins
        return True
    parameters = list(signature.parameters.values())
    if "norm" in signature.parameters or any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return True
    for arguments in (2, 3):
        try:
            signature.bind(*range(arguments))
        except TypeError:
            continue
        return arguments == 3
    raise TypeError(f"expected a function {_FORMS}, got {getattr(builder, '__name__', 'build')}{signature}")


def user_network(target: str, task: Task) -> dict[str, str]:
    """Check the user's model on one batch, and return what identifies it in a trial's settings.

    The contract is one of two:

    - ``build(input_shape, classes, norm) -> nn.Module``: ``input_shape`` is (channels, height, width);
      ``norm(channels)`` returns the arm's normalization layer for (N, C, H, W), ``norm(channels, 0)`` the one for
      (N, C).
    - ``build(input_shape, classes) -> nn.Module`` with BatchNorms, torch's or gammabeta's: the study replaces each by
      the arm's norm (:func:`gammabeta.lab.images.arms.put`).

    Either model maps images (n, channels, height, width) float32 to scores (n, classes).

    Raises:
        TaskError: the contract is not kept; the message says where.
    """
    builder = load_builder(target)
    made: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _call(target, builder, task, "batch", made)
        if _takes_norm(target, builder):
            _check_norms(target, model, made)
        else:
            _put(target, task, model, "batch")
        _check_scores(target, model.train(), task)
    where, _, name = target.rpartition(":")
    file = Path(_import(target)[0].__file__ or "")
    if where.endswith(".py"):
        target = f"{file.resolve()}:{name}"
    return {"kind": "user", "model": target, "fingerprint": hashlib.sha256(file.read_bytes()).hexdigest()[:16]}


def impossible_arms(network: Mapping[str, Any], task: Task) -> dict[str, str]:
    """Return the arms that a user's model cannot have on this task, each with the reason.

    Each arm is tried on one batch of 8. An example is InstanceNorm where the model has reduced images to 1 × 1, which
    leaves one value per channel and sample. The study's own networks can have all arms.
    """
    reasons: dict[str, str] = {}
    if network["kind"] != "user":
        return reasons
    for arm in NORMS:
        with torch.random.fork_rng(devices=[]):
            try:
                _check_scores(network["model"], build(task, network, arm, 0), task)
            except (TaskError, ValueError) as error:
                reasons[arm] = str(error)
    return reasons


def _built_by_user(target: str, task: Task, arm: str) -> nn.Module:
    """Build the user's model with the arm's norms, in training mode."""
    builder = load_builder(target)
    model = _call(target, builder, task, arm, [])
    if not _takes_norm(target, builder):
        _put(target, task, model, arm)
    return model.train()


def _takes_norm(target: str, builder: Callable[..., nn.Module]) -> bool:
    try:
        return takes_norm(builder)
    except TypeError as error:
        raise TaskError(f"--model {target}: {error}.") from error


def _call(target: str, builder: Callable[..., nn.Module], task: Task, arm: str, made: list[nn.Module]) -> nn.Module:
    """Call the user's function and return its model; the norms that it asked for are appended to ``made``."""

    def norm_of_arm(channels: int, positions: int = 2) -> nn.Module:
        made.append(norm(arm, channels, positions))
        return made[-1]

    with_norm = _takes_norm(target, builder)
    called = f"build({task.shape}, {task.classes}{', norm' if with_norm else ''})"
    arguments: dict[str, Any] = {}
    positional: list[Any] = [task.shape, task.classes]
    if with_norm and _has(builder, "norm"):
        arguments["norm"] = norm_of_arm
    elif with_norm:
        positional.append(norm_of_arm)
    try:
        model = builder(*positional, **arguments)
    except (Exception, SystemExit) as error:
        raise TaskError(f"--model {target}: {called} raised {_in_one_line(error)}.") from error
    if not isinstance(model, nn.Module):
        raise TaskError(f"--model {target}: expected {called} to return an nn.Module, got {type(model).__name__}.")
    return model


def _has(builder: Callable[..., nn.Module], name: str) -> bool:
    try:
        return name in inspect.signature(builder).parameters
    except ValueError:
        return False


def _put(target: str, task: Task, model: nn.Module, arm: str) -> None:
    """Replace each BatchNorm of the user's model by the arm's norm."""
    if not batch_norms(model):
        raise TaskError(
            f"--model {target}: expected a model with BatchNorm layers (nn.BatchNorm1d, 2d, 3d or gammabeta's) from "
            f"build({task.shape}, {task.classes}), got {type(model).__name__} without one: put one where the model "
            "normalizes, or write build(input_shape, classes, norm) and put norm(channels) there."
        )
    try:
        put(model, arm)
    except ArmError as error:
        raise TaskError(f"--model {target}: {named(arm)} cannot stand in place of {error}.") from error


def _check_norms(target: str, model: nn.Module, made: list[nn.Module]) -> None:
    """Check that all layers made by norm(channels) are part of the model."""
    if not made:
        raise TaskError(f"--model {target}: norm was never called; put norm(channels) where the model normalizes.")
    if not set(made) <= set(model.modules()):
        raise TaskError(f"--model {target}: a layer made by norm(channels) is not part of the model that was returned.")


def _check_scores(target: str, model: nn.Module, task: Task) -> None:
    """Check that the model maps a batch of 8 to scores."""
    x_nchw = task.train.x_nchw[:8]
    try:
        scores = model(x_nchw)
    except (Exception, SystemExit) as error:
        raise TaskError(
            f"--model {target}: the model does not take a batch of shape {tuple(x_nchw.shape)}: {_in_one_line(error)}."
        ) from error
    expected = (len(x_nchw), task.classes)
    if not isinstance(scores, Tensor):
        raise TaskError(
            f"--model {target}: expected scores of shape {expected} for a batch of {len(x_nchw)}, got "
            f"{type(scores).__name__}: wrap the model in one whose forward returns only the scores."
        )
    if tuple(scores.shape) != expected:
        raise TaskError(
            f"--model {target}: expected scores of shape {expected} for a batch of {len(x_nchw)}, got "
            f"{tuple(scores.shape)}."
        )


def _in_one_line(error: BaseException) -> str:
    """Return the error in one line, without a full stop."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(". ")

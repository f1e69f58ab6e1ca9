"""The networks of the benchmarks: how each is built, what it is trained on, and how it is called.

Weights are random. Images have 160 pixels a side, in batches of 16, and 1,000 classes; sequences have 256 tokens.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from gammabeta.benchmarks.ring import LAYOUTS
from gammabeta.benchmarks.unet import TIMES, UNet

IMAGES = (16, 3, 160, 160)
NOISY = (16, 3, 32, 32)
TOKENS = (8, 256)
CLASSES, VOCABULARY = 1000, 2048
BATCHES = 4  # that the steps of a network cycle through
RATE, MOMENTUM = 1e-3, 0.9

_libraries: list[torch.library.Library] = []  # a schema lives as long as the object that declared it


@dataclass(frozen=True)
class Batch:
    """What a network is called with, and what its loss compares the output with."""

    inputs: tuple[Tensor, ...]
    target: Tensor

    def to(self, layout: str, dtype: torch.dtype | None = None) -> Batch:
        """Return the batch with its images in that layout, and its floating tensors in that dtype."""
        inputs, target = (tuple(_to(x, layout, dtype) for x in given) for given in (self.inputs, (self.target,)))
        return Batch(inputs, target[0])

    def first(self, samples: int) -> Batch:
        """Return the first samples of the batch."""
        return Batch(tuple(x[:samples] for x in self.inputs), self.target[:samples])


@dataclass(frozen=True)
class Network:
    """A network, and how it is trained.

    Args:
        name: timm's, or the network's own.
        shape: of its first input.
        build: returns the network, in training mode, with random weights.
        draw: returns a batch.
        call: from the network and the inputs to the output that the loss takes.
        loss: of the output and the target.
        layouts: in which it is measured.
        batch_norms: whether it has BatchNorms, which `gammabeta.fold` folds.
        library: the distribution that `build` imports, beside torchvision for timm.
    """

    name: str
    shape: tuple[int, ...]
    build: Callable[[], nn.Module]
    draw: Callable[[Generator], Batch]
    call: Callable[[nn.Module, tuple[Tensor, ...]], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    layouts: tuple[str, ...] = tuple(LAYOUTS)
    batch_norms: bool = False
    library: str = "timm"

    def missing(self) -> str | None:
        """Return what must be installed first, in a sentence; None where nothing is missing."""
        if self.library and not importlib.util.find_spec(self.library):
            return f"it needs {self.library}: pip install {self.library}"
        return None

    def seeded(self) -> nn.Module:
        """Return the network built from seed 0."""
        torch.manual_seed(0)
        return self.build().train()

    def batches(self, layout: str) -> list[Batch]:
        """Return the batches that steps cycle through, always the same."""
        generator = torch.Generator().manual_seed(0)
        return [self.draw(generator).to(layout) for _ in range(BATCHES)]


def missing() -> str | None:
    """Return what most of the networks need, in a sentence; None where it is installed."""
    if importlib.util.find_spec("timm") and importlib.util.find_spec("torchvision"):
        return None
    return "it needs timm and torchvision: pip install --no-deps timm torchvision"


def autocast(dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Return the context of a forward: autocast to bfloat16, or none for float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)


def in_layout(model: nn.Module, layout: str) -> nn.Module:
    """Give the network's convolutions that layout, in place."""
    return model.to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload, no-any-return]


@torch.no_grad()
def randomize_norms(model: nn.Module) -> None:
    """Set statistics and affine parameters of BatchNorms to values near those of a trained network."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.uniform_(0.7, 1.3)
            module.bias.normal_(0, 0.2)


def _to(x: Tensor, layout: str, dtype: torch.dtype | None) -> Tensor:
    x = x.to(dtype) if dtype is not None and x.is_floating_point() else x
    return x.contiguous(memory_format=LAYOUTS[layout]) if x.ndim == 4 else x


def _plain(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    y: Tensor = model(*inputs)
    return y


def _images(name: str, batch_norms: bool = False, layouts: tuple[str, ...] = tuple(LAYOUTS), **options: Any) -> Network:
    def draw(generator: Generator) -> Batch:
        x = torch.randn(IMAGES, generator=generator)
        return Batch((x,), torch.randint(CLASSES, IMAGES[:1], generator=generator))

    def build() -> nn.Module:
        model: nn.Module = load_timm().create_model(name, **options)
        return model

    return Network(name, IMAGES, build, draw, _plain, F.cross_entropy, layouts, batch_norms)


def _llama() -> Network:
    def build() -> nn.Module:
        load_timm()  # and with it torchvision, which transformers imports where it is installed
        transformers: Any = importlib.import_module("transformers")
        config = transformers.LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=TOKENS[1], use_cache=False,
        )  # fmt: skip
        model: nn.Module = transformers.LlamaForCausalLM(config)
        return model

    def draw(generator: Generator) -> Batch:
        tokens = torch.randint(VOCABULARY, (TOKENS[0], TOKENS[1] + 1), generator=generator)
        return Batch((tokens[:, :-1].contiguous(),), tokens[:, 1:].contiguous())

    def call(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        logits: Tensor = model(input_ids=inputs[0]).logits
        return logits

    def loss(y: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(y.flatten(0, 1), target.flatten())

    return Network("llama", TOKENS, build, draw, call, loss, ("contiguous",), library="transformers")


def _unet() -> Network:
    def draw(generator: Generator) -> Batch:
        noise = torch.randn(NOISY, generator=generator)
        x = 0.7 * torch.randn(NOISY, generator=generator) + 0.7 * noise
        return Batch((x, torch.randint(TIMES, NOISY[:1], generator=generator)), noise)

    return Network("unet", NOISY, UNet, draw, _plain, F.mse_loss, library="")


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


_batch_normed = partial(_images, batch_norms=True)

NETWORKS: tuple[Network, ...] = (
    _batch_normed("mobilenetv2_100"),
    _batch_normed("efficientnet_b0"),
    _batch_normed("resnet18"),
    _batch_normed("resnet50"),
    _batch_normed("densenet121"),
    _batch_normed("regnety_004"),
    _images("convnext_atto"),
    _images("vit_tiny_patch16_224", layouts=("contiguous",), img_size=IMAGES[-1]),
    _llama(),
    _unet(),
)
"""In the order in which they are measured; the first stands for all in a quick run."""

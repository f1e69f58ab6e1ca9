"""Architectures of five libraries, small, each with batches of its own kind that can be learned."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from tests.census.transformers_families import FAMILIES, transformer_subject
from torch import Tensor, nn

from gammabeta.benchmarks.networks import load_timm

CLASSES, BATCH = 4, 8
Batches = Callable[[torch.Generator, Tensor], Any]


@dataclass(frozen=True)
class Subject:
    """An architecture.

    Attributes:
        library: which library has it.
        name: its name there.
        build: returns the model and a function from (generator, labels) to what the model takes: a tensor, or a dict
            of keyword arguments.
        labels: how many labels a batch has.
    """

    library: str
    name: str
    build: Callable[[], tuple[nn.Module, Batches]]
    labels: int = BATCH

    def __str__(self) -> str:
        return f"{self.library} {self.name}"


# Name, and the side of its images where it is not 64; after "=" it is handed to the constructor.
TIMM = (
    *("cspresnet50", "darknet17", "densenet121", "dla34", "dpn48b", "efficientnet_b0"),
    *("efficientnetv2_rw_t", "efficientvit_b0", "efficientvit_m0 224", "fastvit_t8", "fbnetc_100", "ghostnet_050"),
    *("gernet_s", "hardcorenas_a", "hgnetv2_b0", "hrnet_w18_small", "inception_next_atto", "lcnet_050"),
    *("levit_128s 224", "mixnet_s", "mnasnet_050", "mobilenetv2_050", "mobilenetv3_large_100"),
    *("mobilenetv3_small_050", "mobilenetv4_conv_small", "mobileone_s0", "mobilevit_xxs", "mobilevitv2_050"),
    *("regnetx_002", "regnety_002", "repghostnet_050", "repvgg_a0", "repvit_m0_9", "res2net50_14w_8s", "resnest14d"),
    *("resnet18", "resnet50", "resnetblur50", "resnetv2_50", "resnetv2_50x1_bit", "rexnet_100", "selecsls42"),
    *("semnasnet_050", "seresnext26t_32x4d", "skresnet18", "spnasnet_100", "starnet_s1", "swiftformer_xs"),
    *("tf_efficientnet_lite0", "tf_mobilenetv3_small_minimal_100", "tinynet_e", "vovnet39a", "test_byobnet"),
    *("nf_resnet26", "xception41", "ese_vovnet19b_slim"),
    *("coat_lite_tiny=64", "convnext_atto", "convnextv2_atto", "davit_tiny"),
    *("edgenext_xx_small", "focalnet_tiny_srf"),
    *("mambaout_femto", "mvitv2_tiny=64", "pit_ti_224=64", "poolformer_s12", "pvt_v2_b0"),
    *("tnt_s_patch16_224=64", "twins_svt_small=64", "visformer_tiny=64", "hiera_tiny_224=64"),
    *("vit_tiny_patch16_224=64", "deit_tiny_patch16_224=64", "xcit_nano_12_p16_224 64", "resmlp_12_224=64"),
    *("mixer_s32_224=64", "volo_d1_224=64", "swin_tiny_patch4_window7_224=64", "swinv2_tiny_window8_256=64"),
    *("beit_base_patch16_224=64", "cait_xxs24_224=64", "eva02_tiny_patch14_224=56", "maxvit_rmlp_pico_rw_256=64"),
    *("test_vit 160", "test_convnext", "test_nfnet", "test_resnet", "test_efficientnet", "test_vit3 160"),
)
# Name, keyword arguments, side.
TORCHVISION: tuple[tuple[str, dict[str, Any], int], ...] = (
    ("convnext_tiny", {}, 64),
    ("densenet121", {}, 64),
    ("efficientnet_b0", {}, 64),
    ("efficientnet_v2_s", {}, 64),
    ("googlenet", {"init_weights": False, "aux_logits": False}, 64),
    ("inception_v3", {"init_weights": False, "aux_logits": False}, 96),
    ("mnasnet0_5", {}, 64),
    ("mobilenet_v2", {}, 64),
    ("mobilenet_v3_large", {}, 64),
    ("mobilenet_v3_small", {}, 64),
    ("regnet_x_400mf", {}, 64),
    ("regnet_y_400mf", {}, 64),
    ("resnet18", {}, 64),
    ("resnet50", {}, 64),
    ("resnext50_32x4d", {}, 64),
    ("shufflenet_v2_x0_5", {}, 64),
    ("squeezenet1_1", {}, 64),
    ("swin_t", {}, 64),
    ("swin_v2_t", {}, 64),
    ("vgg11_bn", {}, 64),
    ("vit_b_16", {"image_size": 64}, 64),
    ("segmentation.lraspp_mobilenet_v3_large", {"weights_backbone": None}, 64),
    ("segmentation.deeplabv3_mobilenet_v3_large", {"weights_backbone": None}, 64),
    ("segmentation.fcn_resnet50", {"weights_backbone": None}, 64),
    ("video.r3d_18", {}, 32),
    ("video.mc3_18", {}, 32),
)
# Class and encoder.
SEGMENTATION = (
    *(("Unet", "resnet18"), ("UnetPlusPlus", "resnet18"), ("FPN", "mobilenet_v2"), ("PSPNet", "resnet18")),
    *(("DeepLabV3", "resnet18"), ("DeepLabV3Plus", "mobilenet_v2"), ("Linknet", "resnet18"), ("MAnet", "resnet18")),
    *(("UPerNet", "resnet18"), ("Segformer", "mit_b0"), ("Unet", "efficientnet-b0")),
)
# Class, norm.
GRAPHS = (
    *(("GCN", "BatchNorm"), ("GraphSAGE", "LayerNorm"), ("GIN", "BatchNorm"), ("GAT", "GraphNorm")),
    *(("EdgeCNN", "BatchNorm"), ("GCN", "InstanceNorm"), ("GraphSAGE", "PairNorm"), ("GAT", "DiffGroupNorm")),
    *(("GraphSAGE", "BatchNorm"), ("PNA", "BatchNorm"), ("GIN", "LayerNorm")),
)


def subjects(libraries: tuple[str, ...] = ()) -> Iterator[Subject]:
    """Yield all subjects, or those of some libraries, where the library is installed."""
    every = (
        *(Subject("timm", entry.split()[0].partition("=")[0], lambda entry=entry: _timm(entry)) for entry in TIMM),
        *(Subject("torchvision", row[0], lambda row=row: _torchvision(*row)) for row in TORCHVISION),
        *(
            Subject("segmentation_models_pytorch", f"{cls} {encoder}", lambda c=cls, e=encoder: _segmentation(c, e))
            for cls, encoder in SEGMENTATION
        ),
        *(Subject("transformers", name, lambda name=name: transformer_subject(name)) for name in FAMILIES),
        *(
            Subject("torch_geometric", f"{cls} {norm}", lambda c=cls, n=norm: _graph(c, n), labels=NODES)
            for cls, norm in GRAPHS
        ),
    )
    for subject in every:
        if importlib.util.find_spec(subject.library) and (not libraries or subject.library in libraries):
            yield subject


def images(side: int, depth: tuple[int, ...] = ()) -> Batches:
    """Return batches of images whose pattern is their class's: a wave of its frequency, under noise."""

    def batch(generator: torch.Generator, labels: Tensor) -> Tensor:
        position = torch.arange(side) / side
        waves = torch.sin(2 * torch.pi * (labels[:, None] + 1) * position)  # (N, side)
        noise = torch.randn(len(labels), 3, *depth, side, side, generator=generator)
        return noise + 1.5 * waves.reshape(len(labels), 1, *[1] * len(depth), 1, side)

    return batch


def _timm(entry: str) -> tuple[nn.Module, Batches]:
    name, _, own = entry.partition("=")
    name, _, side = name.partition(" ")
    size = int(own or side or 64)
    more = {"img_size": size} if own else {}
    return load_timm().create_model(name, num_classes=10, **more), images(size)


def _torchvision(name: str, options: dict[str, Any], side: int) -> tuple[nn.Module, Batches]:
    load_timm()  # which makes torchvision importable beside a torch for CPUs
    folder, _, function = name.rpartition(".")
    models = importlib.import_module("torchvision.models" + ("." + folder if folder else ""))
    model = getattr(models, function)(weights=None, num_classes=10, **options)
    return model, images(side, (8,) if folder == "video" else ())


def _segmentation(cls: str, encoder: str) -> tuple[nn.Module, Batches]:
    load_timm()
    library = importlib.import_module("segmentation_models_pytorch")
    return getattr(library, cls)(encoder_name=encoder, encoder_weights=None, classes=CLASSES), images(64)


NODES = 80


def _graph(cls: str, norm: str) -> tuple[nn.Module, Batches]:
    library = importlib.import_module("torch_geometric.nn")
    options: dict[str, Any] = {"norm_kwargs": {"groups": 4}} if norm == "DiffGroupNorm" else {}
    if cls == "PNA":
        options |= {"aggregators": ["mean", "max"], "scalers": ["identity"], "deg": torch.tensor([0, 20, 20, 20, 20])}
    model = getattr(library, cls)(8, 16, 3, CLASSES, norm=norm, **options)

    def batch(generator: torch.Generator, labels: Tensor) -> dict[str, Tensor]:
        x = torch.randn(len(labels), 8, generator=generator) + labels[:, None] - 1.5
        return {"x": x, "edge_index": torch.randint(len(labels), (2, 4 * len(labels)), generator=generator)}

    return model, batch

"""Real models of three libraries, small inputs for them, and plausible random norms in them."""

import importlib
import importlib.util

import pytest
import torch
from torch import nn

from gammabeta.benchmarks.networks import load_timm
from gammabeta.surgery.folding.affine import is_candidate

# Name, keyword arguments, input size.
TORCHVISION = (
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
    ("shufflenet_v2_x1_0", {}, 64),
    ("vgg11_bn", {}, 64),
    ("segmentation.lraspp_mobilenet_v3_large", {"weights_backbone": None}, 64),
    ("segmentation.deeplabv3_mobilenet_v3_large", {"weights_backbone": None}, 64),
    ("video.r3d_18", {}, 32),
    ("video.mc3_18", {}, 32),
    ("video.r2plus1d_18", {}, 32),
)
TIMM = (
    "cspresnet50", "cspdarknet53", "darknet17", "densenet121", "dla34", "dpn48b",
    "efficientformer_l1", "efficientnet_b0", "efficientvit_b0", "efficientvit_m0", "fastvit_t8", "fbnetc_100",
    "ghostnet_050", "gernet_s", "hardcorenas_a", "hgnetv2_b0", "hrnet_w18_small",
    "inception_next_atto", "lambda_resnet26t", "lcnet_050", "legacy_seresnet18", "levit_128s", "mixnet_s",
    "mnasnet_050",
    "mobilenetv2_050", "mobilenetv3_small_050", "mobilenetv4_conv_small", "mobileone_s0", "mobilevit_xxs",
    "mobilevitv2_050", "regnetx_002", "regnetz_b16", "repghostnet_050", "repvgg_a0",
    "repvit_m0_9", "res2net50_14w_8s", "resnest14d", "resnet18", "resnet26t", "resnetblur50", "resnetrs50",
    "resnetv2_50", "rexnet_100", "selecsls42", "semnasnet_050", "seresnext26t_32x4d",
    "skresnet18", "spnasnet_100", "starnet_s1", "swiftformer_xs", "test_byobnet", "test_efficientnet", "test_resnet",
    "tf_efficientnet_lite0", "tf_mobilenetv3_small_minimal_100", "tiny_vit_5m_224", "tinynet_e", "vovnet39a",
    "xception41", "xcit_nano_12_p16_224",
)  # fmt: skip
# Class, configuration, shape of the input, its name.
TRANSFORMERS = (
    ("CvtModel", {}, (1, 3, 64, 64), "pixel_values"),
    (
        "DetrModel",
        {"encoder_layers": 1, "decoder_layers": 1, "use_timm_backbone": False, "use_pretrained_backbone": False},
        (1, 3, 64, 64),
        "pixel_values",
    ),
    ("HGNetV2Backbone", {}, (1, 3, 64, 64), "pixel_values"),
    ("LevitModel", {}, (2, 3, 224, 224), "pixel_values"),
    ("MobileNetV1Model", {}, (2, 3, 64, 64), "pixel_values"),
    ("MobileNetV2Model", {}, (2, 3, 64, 64), "pixel_values"),
    ("MobileViTModel", {"image_size": 64}, (1, 3, 64, 64), "pixel_values"),
    ("MobileViTV2Model", {"image_size": 64}, (1, 3, 64, 64), "pixel_values"),
    ("RegNetModel", {}, (1, 3, 64, 64), "pixel_values"),
    ("ResNetModel", {}, (2, 3, 64, 64), "pixel_values"),
    ("RTDetrResNetBackbone", {}, (1, 3, 64, 64), "pixel_values"),
    ("SegformerForSemanticSegmentation", {}, (1, 3, 64, 64), "pixel_values"),
    ("TextNetModel", {}, (1, 3, 64, 64), "pixel_values"),
    ("Wav2Vec2ConformerModel", {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
                                "intermediate_size": 64}, (2, 4000), "input_values"),
)  # fmt: skip

QUICK = (
    "torchvision resnet18", "torchvision mobilenet_v3_small",
    "torchvision shufflenet_v2_x0_5", "timm test_efficientnet", "timm test_byobnet", "timm test_resnet",
    "timm resnetv2_50", "timm levit_128s", "timm tf_mobilenetv3_small_minimal_100",
    "transformers LevitModel", "transformers MobileNetV1Model",
)  # fmt: skip
NAMES = (
    *(f"torchvision {name}" for name, *_ in TORCHVISION),
    *(f"timm {name}" for name in TIMM),
    *(f"transformers {name}" for name, *_ in TRANSFORMERS),
)


def build(name):
    """Return the model of that name, in evaluation with random norms, and two inputs; skip where it cannot be built."""
    library, which = name.split(" ", 1)
    for needed in {"torchvision", "timm", library}:
        if not importlib.util.find_spec(needed):
            pytest.skip(f"{needed} is not installed")
    timm = load_timm()
    torch.manual_seed(0)
    if library == "timm":
        model = timm.create_model(which)
        size = (timm.get_pretrained_cfg(which) or model.default_cfg).fixed_input_size
        side = model.default_cfg["input_size"][1] if size else 64
        inputs = [torch.randn(2, 3, side, side) for _ in range(2)]
    elif library == "torchvision":
        _, options, side = next(row for row in TORCHVISION if row[0] == which)
        folder, _, function = which.rpartition(".")
        models = importlib.import_module("torchvision.models" + ("." + folder if folder else ""))
        model = getattr(models, function)(weights=None, **options)
        depth = (8,) if folder == "video" else ()
        inputs = [torch.randn(2, 3, *depth, side, side) for _ in range(2)]
    else:
        transformers = importlib.import_module("transformers")
        _, options, shape, argument = next(row for row in TRANSFORMERS if row[0] == which)
        cls = getattr(transformers, which)
        model = cls(cls.config_class(**options))
        inputs = [{argument: torch.randn(shape)} for _ in range(2)]
    model.eval()
    randomize_norms(model)
    return model, inputs


@torch.no_grad()
def randomize_norms(model, seed=0):
    """Set random statistics and affine parameters near those of a trained network: activations keep their scale."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if is_candidate(module) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            if module.weight is not None:
                module.weight.uniform_(0.7, 1.3, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)


def cast(inputs, dtype):
    """Cast floating inputs to another dtype."""
    if isinstance(inputs, dict):
        return {name: value.to(dtype) for name, value in inputs.items()}
    return inputs.to(dtype)


def outputs(model, inputs):
    """Return the tensors that the model returns, computed without gradients."""
    from gammabeta.introspection.observe import tensors_in

    with torch.no_grad():
        return tensors_in(model(**inputs) if isinstance(inputs, dict) else model(inputs))


def relative_error(found, expected):
    """Return the largest of max|a − b|/max|b| over the outputs."""
    assert len(found) == len(expected)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, expected, strict=True))


def norms(model):
    """Return the modules that fold considers, by name."""
    return [name for name, module in model.named_modules() if is_candidate(module)]


def count_of_fx(model):
    """Return the norms that torch's fusion by symbolic tracing folds, and the model; None where it cannot trace."""
    from torch.fx.experimental.optimization import fuse

    try:
        fused = fuse(model)
    except Exception:  # tracing fails in many ways
        return None
    plain = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    called = {node.target for node in fused.graph.nodes if node.op == "call_module"}
    gone = [name for name, module in model.named_modules() if type(module) in plain and name not in called]
    return len(gone), fused

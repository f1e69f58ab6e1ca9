"""Other libraries' tables by exact class: stand-ins for them, and the libraries where they are installed."""

import contextlib
import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

import gammabeta as gb
from gammabeta.benchmarks.networks import load_timm


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.InstanceNorm2d(8, affine=True), nn.GroupNorm(2, 8),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(8), nn.Linear(8, 2),
    )  # fmt: skip


def count_thop(model):
    return pytest.importorskip("thop").profile(copy.deepcopy(model), (torch.randn(2, 3, 9, 9),), verbose=False)[0]


def count_ptflops(model):
    with contextlib.suppress(ImportError):
        load_timm()  # and with it torchvision, which ptflops imports
    count = pytest.importorskip("ptflops").get_model_complexity_info
    options = {"as_strings": False, "print_per_layer_stat": False, "verbose": False, "backend": "pytorch"}
    return count(copy.deepcopy(model), (3, 9, 9), **options)[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("count", [count_thop, count_ptflops])
def test_counters_count_the_norms_of_adopted_models(count):
    model = network().eval()
    expected, without = count(model), count(nn.Sequential(*(m for m in model if "Norm" not in type(m).__name__)))
    assert expected > without
    gb.adopt(model)
    assert count(model) == expected


def test_a_stand_in_knows_all_our_classes_and_those_of_adopted_layers(tmp_path):
    (tmp_path / "thop").mkdir()
    (tmp_path / "thop" / "__init__.py").write_text("from .profile import profile\n")
    (tmp_path / "thop" / "profile.py").write_text(
        "from torch import nn\n"
        "def profile(): pass\n"
        "def count(): pass\n"
        "register_hooks = {nn.BatchNorm2d: count, nn.LayerNorm: count, nn.Linear: None}\n"
    )
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import gammabeta as gb\n"
        "from tests.surgery.norm_act import BatchNormAct2d\n"
        "layer = BatchNormAct2d(3); gb.adopt(layer)\n"
        "import thop\n"
        "table = sys.modules['thop.profile'].register_hooks\n"
        "print(type(layer) in table, gb.BatchNorm2d in table, gb.LayerNorm in table, gb.GroupNorm in table)\n"
        "class Mine(BatchNormAct2d): pass\n"
        "other = Mine(3); gb.adopt(other)\n"
        "print(table[type(other)].__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.stdout == "True True True False\ncount\n", done.stderr

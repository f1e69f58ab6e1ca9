"""GB403: channels that only output β."""

import pytest
import torch
import torch.nn.utils.prune
from torch import nn

import gammabeta as gb
from gammabeta.diagnostics.check import diagnose
from gammabeta.diagnostics.record import record_state
from gammabeta.diagnostics.rules import dead_scale
from gammabeta.diagnostics.scale import offset_of


def test_a_dead_channel_gives_its_bias_and_no_gradient():
    torch.manual_seed(0)
    model = dead_scale.flagged().model
    nn.init.normal_(model[1].bias)
    y = model(torch.randn(16, 4))
    assert torch.equal(y[:, 1], model[1].bias[1].expand(16))
    y[:, [1, 4]].sum().backward()
    assert model[0].weight.grad.abs().max() == 0


def test_the_channels_are_named():
    (finding,) = gb.check(dead_scale.flagged().model, select="GB403").findings
    assert finding.message == "γ is 0 in 2 of 8 channels, which only output β: 1, 4"
    assert finding.evidence == {"dead": 2, "channels": 8}


def test_a_subnormal_scale_is_as_dead_as_0():
    norm = nn.BatchNorm1d(3)
    nn.init.normal_(norm.weight)
    with torch.no_grad():
        norm.weight[2] = 1e-40
    (finding,) = gb.check(norm, select="GB403").findings
    assert finding.message == "γ is 0 in 1 of 3 channels, which only output β: 2"


@pytest.mark.parametrize("others", [lambda weight: None, nn.init.normal_])
def test_a_scale_of_zeros_may_be_a_start_and_is_left_out(others):
    """Zero-initialized norms of residual branches, before they moved, also where the others have."""
    model = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    nn.init.zeros_(model[1].weight)
    others(model[0].weight)
    assert not gb.check(model, select="GB403").findings


class OnePlus(nn.Module):
    """A norm that keeps γ − 1, as Gemma's."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


class OnePlusRMSNorm(OnePlus):
    pass


class OnePlusLayerNorm(nn.LayerNorm):
    """A norm that keeps γ − 1 in a subclass of torch's class, as NeMo's LayerNorm1P."""

    def forward(self, x):
        return nn.functional.layer_norm(x, self.normalized_shape, 1 + self.weight, self.bias, self.eps)


class WeightTimesTwoRMSNorm(OnePlus):
    def forward(self, x):
        return super().forward(x) * 0 + x * self.weight.clamp(min=0.5)


class PlainRMSNorm(OnePlus):
    def forward(self, x):
        return super().forward(x) / (1 + self.weight) * self.weight


class BatchNormAct(nn.BatchNorm2d):
    """A BatchNorm with its activation, as timm's."""

    def __init__(self, size):
        super().__init__(size)
        self.drop, self.act = nn.Identity(), nn.ReLU()

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


@pytest.mark.parametrize(
    ("cls", "offset"),
    [
        (OnePlus, 1.0),
        (OnePlusRMSNorm, 1.0),
        (OnePlusLayerNorm, 1.0),
        (PlainRMSNorm, 0.0),
        (WeightTimesTwoRMSNorm, None),
        (BatchNormAct, 0.0),
        (nn.RMSNorm, 0.0),
        (gb.LayerNorm, 0.0),
    ],
)
def test_the_layer_says_what_its_weight_means(cls, offset):
    torch.manual_seed(0)
    norm = cls(6)
    state = {key: value.clone() for key, value in norm.state_dict().items()}
    random = torch.get_rng_state()
    assert offset_of(norm) == offset
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(state[key], value) for key, value in norm.state_dict().items())
    for value in (0.0, -1.0):
        with torch.no_grad():
            norm.weight.uniform_(0.1, 0.5)
            norm.weight[3] = value
        findings = gb.check(norm, select="GB403").findings
        assert len(findings) == (offset == -value)
        x = torch.randn(5, 6, 2, 2) if isinstance(norm, nn.BatchNorm2d) else torch.randn(5, 6)
        if offset == -value:
            y = norm.eval()(x)[:, 3]
            assert bool((y == y.flatten()[0]).all())


@pytest.mark.parametrize(
    ("norm", "message"),
    [
        (nn.RMSNorm(6), "γ is 0 in 1 of 6 channels, which only output 0: 3"),
        (nn.LayerNorm(6, bias=False), "γ is 0 in 1 of 6 channels, which only output 0: 3"),
        (nn.BatchNorm2d(6), "γ is 0 in 1 of 6 channels, which only output β: 3"),
        (BatchNormAct(6), "γ is 0 in 1 of 6 channels, whose output is the same for every input: 3"),
        (
            gb.BatchNorm2d(6, activation="gelu"),
            "γ is 0 in 1 of 6 channels, whose output is the same for every input: 3",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_message_says_what_is_left(norm, message):
    with torch.no_grad():
        norm.weight[3] = 0
    (finding,) = gb.check(norm, select="GB403").findings
    assert finding.message == message
    assert "prune" not in str(finding.fix)


def test_of_one_plus_the_weight_the_advice_is_not_against_decay():
    norm = OnePlusRMSNorm(6)
    with torch.no_grad():
        norm.weight[3] = -1
    (finding,) = gb.check(norm, select="GB403").findings
    assert finding.message == "1 + weight is 0 in 1 of 6 channels, which only output 0: 3"
    assert str(finding.fix) == "look at what drives weight to −1 there; weight decay would pull it to 0"


def test_pruned_channels_are_meant():
    norm = nn.LayerNorm(8)
    nn.utils.prune.random_unstructured(norm, "weight", 0.5)
    assert not gb.check(norm, select="GB403").findings


@pytest.mark.parametrize("name", ["GemmaConfig", "Gemma2Config", "LlamaConfig"])
def test_gemma_s_zeros_are_ones(name):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = getattr(transformers, name)(vocab_size=8, head_dim=8, num_key_value_heads=2, **sizes)
    model = transformers.AutoModel.from_config(config)
    norms = [module for name, module in model.named_modules() if name.endswith("norm")]
    for norm in norms:
        with torch.no_grad():
            norm.weight.normal_()
            norm.weight[3] = 0
    found = gb.check(model, select="GB403").findings
    assert len(found) == (len(norms) if name == "LlamaConfig" else 0)


def test_in_a_checkpoint_only_running_statistics_tell():
    state = nn.ModuleDict({"a": nn.BatchNorm1d(4), "b_norm": nn.LayerNorm(4), "c_norm": nn.RMSNorm(4)}).state_dict()
    for name in ("a", "b_norm", "c_norm"):
        state[f"{name}.weight"][1] = 0
    found = diagnose(record_state(state), select="GB403").findings
    assert [finding.where for finding in found] == ["a"]

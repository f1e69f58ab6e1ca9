"""parameter_groups: weights decay, norms and biases don't, and every Parameter appears once."""

import pytest
import torch
from tests.surgery.models import model
from torch import nn
from torch.nn.utils import parametrizations

import gammabeta as gb


class LlamaRMSNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))


class PreNormBlock(nn.Module):
    """A module with a norm in its name that is none."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(4, 4))


def names(m, decay=0.1):
    known = {id(p): n for n, p in m.named_parameters()}
    return [[known[id(p)] for p in group["params"]] for group in gb.parameter_groups(m, decay)]


@pytest.mark.parametrize("adopted", [False, True])
def test_weights_decay_and_norms_and_biases_do_not(adopted):
    m = model()
    if adopted:
        gb.adopt(m)
    weights, spared = names(m)
    assert weights == ["stem.weight", "block.0.weight", "fc.weight", "head.weight"]
    assert len(weights) + len(spared) == len(list(m.parameters()))
    assert {"bn1.weight", "rms.weight", "inorm.bias", "fc.bias"} <= set(spared)
    groups = gb.parameter_groups(m, 0.1)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


def test_an_optimizer_decays_by_them():
    m = model()
    before = {n: p.clone() for n, p in m.named_parameters()}
    optimizer = torch.optim.SGD(gb.parameter_groups(m, 0.5), lr=0.1)
    for p in m.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in m.named_parameters():
        factor = 0.95 if name in ("stem.weight", "block.0.weight", "fc.weight", "head.weight") else 1.0
        torch.testing.assert_close(p, factor * before[name], rtol=1e-6, atol=0)


def test_shared_parameters_stand_once_and_a_norm_s_does_not_decay():
    m = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "b": nn.Linear(4, 4, bias=False), "n": nn.LayerNorm(4)})
    m["b"].weight = m["a"].weight
    m["a"].scale = m["n"].weight
    assert names(m) == [["a.weight"], ["a.scale", "n.bias"]]


def test_norms_of_others_are_told_by_class():
    m = nn.Sequential(LlamaRMSNorm(), PreNormBlock())
    assert names(m) == [["1.matrix"], ["0.weight"]]


def test_biases_of_recurrent_layers_do_not_decay():
    m = nn.ModuleDict({
        "lstm": nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2), "gru": nn.GRU(3, 4), "rnn": nn.RNN(3, 4),
        "cell": nn.LSTMCell(3, 4), "attention": nn.MultiheadAttention(4, 2, add_bias_kv=True),
    })  # fmt: skip
    weights, spared = names(m)
    assert len(spared) == 8 + 2 + 2 + 2 + 4
    assert not [name for name in weights if "bias" in name]
    assert not [name for name in spared if "weight" in name]
    assert len(weights) == 12 + 2 + 2 + 2 + 2


class Scaled(nn.Module):
    """Scales of one axis and of none, position embeddings, and a recurrence that asks to be spared."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.gamma, self.logit_scale = nn.Parameter(torch.ones(4)), nn.Parameter(torch.tensor(2.0))
        self.pos_embed, self.table = nn.Parameter(torch.zeros(1, 3, 4)), nn.Parameter(torch.zeros(5, 2))
        self.a_log, self.activation = nn.Parameter(torch.zeros(4, 2)), nn.PReLU(4)
        self.a_log._no_weight_decay = True

    def no_weight_decay(self):
        return {"pos_embed", "linear"}

    def no_weight_decay_keywords(self):
        return {"tabl"}


@pytest.mark.parametrize("wrapped", [False, True])
def test_scales_and_what_the_model_asks_for_do_not_decay(wrapped):
    m = nn.ModuleDict({"backbone": Scaled(), "pos_embed": Scaled().linear}) if wrapped else Scaled()
    weights, spared = names(m)
    prefix = "backbone." if wrapped else ""
    assert weights == [f"{prefix}linear.weight", *(["pos_embed.weight"] if wrapped else [])]
    scales = ["gamma", "logit_scale", "pos_embed", "table", "a_log", "linear.bias", "activation.weight"]
    assert set(spared) == {f"{prefix}{name}" for name in scales} | ({"pos_embed.bias"} if wrapped else set())


def test_where_fsdp_has_flattened_weights_the_number_of_axes_says_nothing():
    class FullyShardedDataParallel(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    m = FullyShardedDataParallel(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)))
    m.module[0].weight = nn.Parameter(m.module[0].weight.detach().flatten())
    assert names(m)[0] == ["module.0.weight"]


def test_biases_by_other_names_and_behind_parametrizations():
    m = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2), "norm": nn.BatchNorm1d(4), "linear": nn.Linear(4, 4)})
    parametrizations.weight_norm(m["norm"])
    parametrizations.weight_norm(m["linear"])
    weights, spared = names(m)
    assert weights == [
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "linear.parametrizations.weight.original0",
        "linear.parametrizations.weight.original1",
    ]
    assert "attention.in_proj_bias" in spared
    assert "norm.parametrizations.weight.original0" in spared


def test_a_group_of_none_is_left_out():
    assert [group["weight_decay"] for group in gb.parameter_groups(nn.LayerNorm(3), 0.1)] == [0.0]


@pytest.mark.parametrize(
    ("m", "decay", "message"),
    [
        (nn.Linear(2, 2), -0.1, "parameter_groups: expected weight_decay of at least 0, got -0.1."),
        (nn.ReLU(), 0.1, "parameter_groups: expected a model with Parameters, got one without."),
    ],
)
def test_errors(m, decay, message):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        gb.parameter_groups(m, decay)
    assert str(raised.value) == message


def test_a_scale_for_each_channel_with_axes_of_1_does_not_decay():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer_scale = nn.Parameter(torch.ones(6, 1, 1))
            self.conv = nn.Conv2d(1, 6, 1)
            self.position = nn.Parameter(torch.ones(1, 2, 3))

    m = Block()
    decayed, spared = gb.parameter_groups(m, 0.1)
    assert [id(p) for p in decayed["params"]] == [id(m.position), id(m.conv.weight)]
    assert [id(p) for p in spared["params"]] == [id(m.layer_scale), id(m.conv.bias)]

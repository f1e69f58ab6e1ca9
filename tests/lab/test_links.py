"""What synchronizing costs over a link: which collectives a step makes, and what is said of them."""

import pytest
import torch
from torch import nn

from gammabeta.lab.links import GATHER, LINKS, REDUCE, Link, communication, of_synced


class Recurrent(nn.Module):
    """A norm that is called at every step of a loop, and one that is called once."""

    def __init__(self):
        super().__init__()
        self.inside, self.after = nn.BatchNorm1d(3), nn.BatchNorm1d(5)
        self.last = nn.Linear(3, 5)

    def forward(self, x):
        for _ in range(4):
            x = self.inside(x)
        return self.after(self.last(x))


def test_every_call_of_a_batch_norm_makes_its_collectives():
    model = Recurrent()
    sent = of_synced(model, lambda: model(torch.randn(6, 3)))
    assert sent == [(GATHER, 32), (REDUCE, 24)] * 4 + [(GATHER, 48), (REDUCE, 40)]
    assert all(not module._forward_pre_hooks for module in model.modules())
    assert of_synced(nn.LayerNorm(3), lambda: None) == []


def test_it_says_what_synchronizing_adds_and_from_how_many_devices_on_it_is_dear():
    link = Link("slow", 1e-3, 1e9)
    text = communication([(REDUCE, 4.0)], 0.1, 8, link)
    # doubling takes ⌈log₂ 8⌉ = 3 messages of a millisecond, and 5 from 17 ranks on, just over 5 ms
    assert text == (
        "synchronizing adds 3 % of a step of 100 ms on 8 devices over slow, over 5 % from 17 devices on (modelled)"
    )
    fast = communication([(REDUCE, 4.0)], 0.1, 8, LINKS["nvlink"])
    assert fast.endswith("under 5 % up to 1024 (modelled)")


@pytest.mark.parametrize("name", LINKS)
def test_links_are_named_as_the_option_names_them(name):
    assert name == name.lower()
    assert LINKS[name].alpha > 0 < LINKS[name].beta

"""Masks from lengths of sequences."""

import re

import pytest
import torch

import gammabeta as gb


@pytest.mark.parametrize("lengths", [[3, 0, 5], torch.tensor([3, 0, 5]), torch.tensor([3, 0, 5], dtype=torch.int32)])
def test_what_is_real_is_true(lengths):
    expected = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0]], dtype=torch.bool)
    assert torch.equal(gb.lengths_to_mask(lengths, 6), expected)
    assert torch.equal(gb.lengths_to_mask(lengths), expected[:, :5])


def test_no_sequences():
    assert gb.lengths_to_mask(torch.empty(0, dtype=torch.int64)).shape == (0, 0)


def test_it_compiles():
    compiled = torch.compile(gb.lengths_to_mask, backend="aot_eager", fullgraph=True)
    lengths = torch.tensor([2, 4])
    assert torch.equal(compiled(lengths, 4), gb.lengths_to_mask(lengths, 4))


def test_the_statistics_are_those_of_the_real_values():
    x = torch.randn(3, 2, 6)
    lengths = torch.tensor([6, 1, 4])
    norm = gb.BatchNorm1d(2, momentum=1.0)
    norm(x, mask=gb.lengths_to_mask(lengths, 6))
    real = torch.cat([x[i, :, :n] for i, n in enumerate(lengths)], 1)
    torch.testing.assert_close(norm.running_mean, real.mean(1))
    torch.testing.assert_close(norm.running_var, real.var(1))


@pytest.mark.parametrize(
    ("lengths", "max_length", "error", "text"),
    [
        ([2, 7], 6, ValueError, "lengths_to_mask: expected lengths from 0 to max_length = 6, got 7: max_length is the "
         "number of positions that the batch was padded to."),
        ([2, -1], None, ValueError, "lengths_to_mask: expected lengths from 0 to max_length = 2, got -1: max_length is "
         "the number of positions that the batch was padded to."),
        ([[2, 1]], 6, ValueError, "lengths_to_mask: expected lengths of shape (N,), got (1, 2): one for each "
         "sequence."),
        ([2.0, 1.0], 6, TypeError, "lengths_to_mask: expected integer lengths, got torch.float32: convert with "
         ".long()."),
    ],
)  # fmt: skip
def test_lengths_that_cannot_be(lengths, max_length, error, text):
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        gb.lengths_to_mask(lengths, max_length)

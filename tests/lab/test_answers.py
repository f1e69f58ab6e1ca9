"""Wrong answers as text, and how finely differences of error rates can be read."""

import numpy as np
import pytest
import torch

from gammabeta.lab.answers import packed, precision_of, unpacked
from gammabeta.lab.interval import Precision


@pytest.mark.parametrize("samples", [1, 7, 8, 9, 400])
def test_what_is_packed_comes_back(samples):
    wrong = torch.rand(samples, generator=torch.Generator().manual_seed(samples)) < 0.3
    assert np.array_equal(unpacked(packed(wrong), samples), wrong.numpy())


def test_a_kept_test_set_has_the_variance_of_its_images_differences():
    ones = [torch.tensor([True, True, False, False]), torch.tensor([True, False, False, False])]
    others = [torch.tensor([False, False, False, True]), torch.tensor([False, False, False, False])]
    results = [[{"wrong": packed(wrong)} for wrong in arm] for arm in (ones, others)]
    found = precision_of(*results, samples=4, trained_on=100)
    # over replicates: errors of 1, ½, 0, 0 and 0, 0, 0, ½
    assert found == Precision(samples=4, variance=pytest.approx(np.var([100, 50, 0, -50], ddof=1)))


def test_redrawn_splits_have_the_overlap_of_their_samples():
    results = [{"wrong": None}, {"wrong": None}]
    assert precision_of(results, results, samples=400, trained_on=997) == Precision(samples=400, trained_on=997)

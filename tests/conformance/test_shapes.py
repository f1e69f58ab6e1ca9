"""Sizes that are refused."""

from __future__ import annotations

import pytest
import torch

import gammabeta as gb


def test_one_value_per_group_is_refused(route: str) -> None:
    """torch refuses it too; the message is ours, whoever computes."""
    with pytest.raises(ValueError, match=r"^group_norm: expected more than 1 value"):
        gb.functional.group_norm(torch.ones(1, 3, 1), 3)

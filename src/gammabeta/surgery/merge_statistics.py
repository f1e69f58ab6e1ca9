"""Merging of the running statistics of many checkpoints into one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_MEAN, _VAR, _COUNT = "running_mean", "running_var", "num_batches_tracked"


def merge_statistics(
    state_dicts: Sequence[Mapping[str, Any]], counts: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """Merge the running statistics of several state_dicts of one model, as of clients or of a soup's members.

        μ = Σ wᵢ·μᵢ        σ² = Σ wᵢ·(σᵢ² + (μᵢ − μ)²)        wᵢ = nᵢ/Σn,        for each channel

    An average of the variances would leave out the variance between the means, (μᵢ − μ)². σᵢ² are running variances as
    they are: each batch moved them by its variance divided by n − 1. Where they are the variances of all of a client's
    values, the result is that of the pooled values: exactly if all are divided by n, and by n − 1 to a part in nᵢ.

    Put the result into the averaged state: `average.update(gammabeta.merge_statistics(state_dicts, counts))`. γ and β
    are averaged like other weights. FedBN keeps the whole norm on each client, and needs no merged statistics. In a
    soup, averaged weights make other activations than its members': where there is data, call `gammabeta.recalibrate`
    on the result.

    Args:
        state_dicts: of models with the same norms, with Tensors or NumPy's arrays. They may be stacked
            (torch.func.stack_module_state): the statistics' last axis is that of the channels. Nothing else in them is
            looked at, and they stay as they are.
        counts: the number of samples of each, or any weights, of which only the ratio counts; 0 leaves one out. None
            takes each norm's num_batches_tracked, and equal weights where none has counted or one has no such entry.

    Returns:
        The entries `running_mean`, `running_var` and `num_batches_tracked` of every norm, and no others: of the
        shape of the state_dicts' own, with dtype and device of the first. num_batches_tracked is the largest of all, as
        in `gammabeta.reconcile`, and an integer. A sum would make the next merge count earlier rounds again. It is left
        out where one state_dict lacks it.

    Raises:
        ValueError: there are no state_dicts or none with running statistics; they have other keys or shapes; counts are
            of another number, negative, not finite or all 0; statistics that count are not finite; statistics that have
            moved have a num_batches_tracked of 0, so that their weight is unknown; a merged variance is beyond its
            dtype.
        TypeError: a state_dict is no mapping, or the counts are no sequence of numbers.

    Source: Chan, Golub & LeVeque 1983, eq. 2.1; Li et al. 2021 (2102.07623) for FedBN.
    """
    states = [_entries(state, i) for i, state in enumerate(state_dicts)]
    norms = _norms_of_all(states)
    weights = None if counts is None else _checked_counts(counts, len(states))
    merged: dict[str, Tensor] = {}
    for norm in norms:
        merged |= _merge(norm, states, weights)
    # In the order of the state_dict.
    return {key: merged[key] for key in states[0] if key in merged}


def _entries(state: Any, i: int) -> dict[Any, Any]:
    """Return a state_dict's entries, with Tensors in place of NumPy's arrays that may be statistics."""
    if not isinstance(state, Mapping):
        raise TypeError(
            f"merge_statistics: expected a sequence of state_dicts, got a {type(state).__qualname__} at {i}: load "
            "files with torch.load, and hand model.state_dict() of a model."
        )
    entries = dict(state)
    for key, value in state.items():
        if isinstance(key, str) and _leaf(key) in (_MEAN, _VAR, _COUNT):
            if not isinstance(value, Tensor) and hasattr(value, "__array__"):
                entries[key] = torch.tensor(value)
            elif isinstance(value, Tensor) and value.is_meta:
                raise ValueError(
                    f"merge_statistics: expected statistics with values, got a meta tensor, {key} in state_dict {i}: "
                    "load the checkpoint first."
                )
    return entries


def _norms_of_all(states: Sequence[Any]) -> list[str]:
    """Return the prefixes of the norms' keys, after a check that all states have the same ones."""
    if not states:
        raise ValueError("merge_statistics: expected at least one state_dict, got none.")
    shapes = [_shapes(state) for state in states]
    if not shapes[0]:
        inner = next((key for key, value in states[0].items() if isinstance(value, Mapping) and _shapes(value)), None)
        hint = "are the norms GroupNorm or LayerNorm? They have none." if inner is None else f"hand its {inner!r}."
        raise ValueError(
            f"merge_statistics: expected state_dicts with running statistics, got none in the first: {hint}"
        )
    for i, other in enumerate(shapes[1:], 1):
        # One of them may not count.
        different = sorted(key for key in shapes[0].keys() ^ other.keys() if not _is_count_alone(key, shapes[0], other))
        prefix = _prefix_of_one(shapes[0], other) if different else None
        if prefix is not None:
            has, lacks = (0, i) if any(prefix in key for key in shapes[0]) else (i, 0)
            raise ValueError(
                f"merge_statistics: expected the same keys in every state_dict, got {prefix!r} in those of state_dict "
                f"{has} and not in those of {lacks}: take the state_dict of the wrapped model (model.module, "
                "model._orig_mod) in all of them."
            )
        if different:
            key = different[0]
            has, lacks = (0, i) if key in shapes[0] else (i, 0)
            raise ValueError(
                f"merge_statistics: expected the same norms in every state_dict, got {key} in state_dict {has} and not "
                f"in {lacks} ({len(different)} such keys): hand checkpoints of one architecture."
            )
        for key, shape in shapes[0].items():
            if other.get(key, shape) != shape:
                raise ValueError(
                    f"merge_statistics: expected the same channels in every state_dict, got {key} of shape {shape} in "
                    f"state_dict 0 and {other[key]} in {i}: hand checkpoints of one architecture."
                )
    return [key.removesuffix(_MEAN) for key in shapes[0] if _leaf(key) == _MEAN]


def _shapes(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the entries that belong to norms with running statistics, by key."""
    found = {}
    for key, value in state.items():
        if isinstance(key, str) and _leaf(key) in (_MEAN, _VAR, _COUNT) and isinstance(value, Tensor):
            norm = key.removesuffix(_leaf(key))
            if norm + _MEAN in state and norm + _VAR in state:
                found[key] = tuple(value.shape)
    return found


def _is_count_alone(key: str, *shapes: Mapping[str, Any]) -> bool:
    """Whether a key is that of a count, of a norm that all of them have."""
    norm = key.removesuffix(_leaf(key))
    return _leaf(key) == _COUNT and all(norm + _MEAN in of for of in shapes)


def _prefix_of_one(*shapes: Mapping[str, Any]) -> str | None:
    """Return the wrapper's prefix without which the keys of both are the same."""
    for prefix in ("_orig_mod.", "module."):
        first, second = ({key.replace(prefix, "") for key in of if _leaf(key) != _COUNT} for of in shapes)
        if first == second:
            return prefix
    return None


def _checked_counts(counts: Sequence[float], expected: int) -> Tensor:
    try:
        if isinstance(counts, Mapping | str):
            raise TypeError
        given = torch.as_tensor(counts, dtype=torch.float64).flatten()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"merge_statistics: expected counts as a sequence of numbers in the order of the state_dicts, got {counts}:"
            " hand the number of samples of each, as [120, 80]."
        ) from error
    if len(given) != expected:
        raise ValueError(
            f"merge_statistics: expected a count for each of {expected} state_dicts, got {len(given)}: hand the number "
            "of samples of each, in their order."
        )
    if not bool((torch.isfinite(given) & (given >= 0)).all()) or not bool((given > 0).any()):
        raise ValueError(
            f"merge_statistics: expected finite counts of at least 0, one of them above, got {given.tolist()}: hand "
            "the number of samples of each, or None."
        )
    return given


def _merge(norm: str, states: Sequence[Mapping[str, Any]], counts: Tensor | None) -> dict[str, Tensor]:
    first = states[0]
    mean, var = (torch.stack([_double(state[norm + leaf]) for state in states]) for leaf in (_MEAN, _VAR))
    tracked = [state[norm + _COUNT] for state in states] if all(norm + _COUNT in state for state in states) else None
    n = torch.ones(len(states), dtype=torch.float64) if counts is None else counts
    if counts is None and tracked is not None:
        n = torch.stack([_double(count) for count in tracked])
        n = torch.where((n > 0).any(0), n, 1.0)
    n = n.reshape(*n.shape, *[1] * (mean.ndim - n.ndim))  # of each state, or of each member of a stacked one
    live = (n > 0).expand_as(mean)
    for i in range(len(states)):
        _check_state(norm, i, mean[i], var[i], live[i], told=counts is not None)
    share = n / n.sum(0)
    # What does not count may be NaN.
    mean, var = mean.where(live, 0.0), var.where(live, 0.0)
    merged_mean = (share * mean).sum(0)
    merged_var = (share * (var + (mean - merged_mean).square())).sum(0)
    out = {norm + _MEAN: merged_mean.to(first[norm + _MEAN]), norm + _VAR: merged_var.to(first[norm + _VAR])}
    for key, value in out.items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(
                f"merge_statistics: expected merged statistics within {value.dtype}, got {key} of up to "
                f"{float(merged_var.max()):.3g}: cast the state_dicts' running statistics to float32 first."
            )
    if tracked is not None:
        most = torch.stack([count.to(tracked[0]) for count in tracked]).amax(0)
        out[norm + _COUNT] = most.round().to(torch.int64) if most.is_floating_point() else most
    return out


def _check_state(norm: str, i: int, mean: Tensor, var: Tensor, live: Tensor, *, told: bool) -> None:
    """Raise if statistics that count are not finite, or if some have moved and count 0 batches."""
    name = norm.rstrip(".") or "the norm"
    bad = live & ~(torch.isfinite(mean) & torch.isfinite(var) & (var >= 0))
    if bool(bad.any()):
        raise ValueError(
            f"merge_statistics: expected statistics that are finite, with variances of at least 0, got "
            f"{int(bad.sum())} of {bad.numel()} channels of {name} that are not in state_dict {i}: leave it out, or "
            "give it a count of 0."
        )
    if not told and bool((~live & ((mean != 0) | (var != 1))).any()):
        raise ValueError(
            f"merge_statistics: expected a num_batches_tracked above 0 with statistics that have moved, got 0 for "
            f"{name} in state_dict {i}, so that its weight is unknown: hand counts, which are the weights."
        )


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64)


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]

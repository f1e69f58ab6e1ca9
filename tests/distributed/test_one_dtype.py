"""FSDP, which needs one dtype: adopted models in bfloat16; checkpoints of shards; a cumulative average resumed."""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from tests.distributed.world import once
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor

import gammabeta as gb
from gammabeta import kernels

PROCESSES = 2


def network(momentum: float | None = 0.1) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8),
        nn.BatchNorm1d(8, momentum=momentum),
        nn.ReLU(),
        nn.Linear(8, 8),
        nn.LayerNorm(8),
        nn.RMSNorm(8),
    )


def data(step: int, rank: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(8, 6, generator=generator)


def whole(t: Tensor) -> Tensor:
    return (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone()


def sharded(model: nn.Module, way: str) -> nn.Module:
    if way == "fsdp1":
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)
    return fully_shard(model)


def trained(ours: bool | None, way: str) -> Any:
    """Return the losses of some steps in bfloat16; ours are adopted with one dtype, or (None) with float32 left in."""
    model = network()
    if ours or ours is None:
        gb.adopt(model, keep_float32=ours is None)
    model.bfloat16()
    try:
        model = sharded(model, way)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        losses = []
        for step in range(3):
            optimizer.zero_grad()
            loss = model(data(step, dist.get_rank()).bfloat16()).float().square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses
    except (AssertionError, ValueError, RuntimeError) as error:
        return str(error), str(gb.explain_error(error, model))


def resumed() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return statistics of an uninterrupted run and of one resumed from a sharded checkpoint, with batches of NaN."""
    models = []
    for stop in (None, 2):
        model = network(momentum=None)
        gb.adopt(model)
        fully_shard(model)
        for step in range(5):
            # The same on every rank: of a tensor that is not sharded a checkpoint holds one rank's.
            x = data(step) * (float("nan") if step in (0, 3) else 1.0)
            with torch.no_grad():
                model(x)
            if step == stop:
                with tempfile.TemporaryDirectory() as folder:
                    paths = [folder]
                    dist.broadcast_object_list(paths)
                    dcp.save({"model": model.state_dict()}, checkpoint_id=paths[0])
                    model = network(momentum=None)
                    gb.adopt(model)
                    fully_shard(model)
                    state = {"model": model.state_dict()}
                    dcp.load(state, checkpoint_id=paths[0])
                    model.load_state_dict(state["model"])
                    dist.barrier()
        models.append({name: whole(buffer) for name, buffer in model.named_buffers()})
    return models[0], models[1]


SIZES = (0, 1 << 62)
"""Numbers of values from which the kernels run: always, and never where torch's op could."""


def job() -> dict[Any, Any]:
    results: dict[Any, Any] = {"resumed": resumed()}
    for size in SIZES:
        kernels.WORTH_IT = dict.fromkeys(kernels.WORTH_IT, size)
        for way in ("fsdp1", "fsdp2"):
            for ours in (True, False, None):
                results[size, way, ours] = trained(ours, way)
    return results


def found(size: int) -> list[dict[Any, Any]]:
    results = once("tests.distributed.test_one_dtype:job", PROCESSES)
    return [{key[1:]: value for key, value in result.items() if key[0] == size} for result in results]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", ["fsdp1", "fsdp2"])
def test_with_one_dtype_training_is_torch_s(way: str, size: int) -> None:
    for result in found(size):
        assert isinstance(result[way, False], list), result[way, False]
        assert isinstance(result[way, True], list), result[way, True]
        torch.testing.assert_close(torch.tensor(result[way, True]), torch.tensor(result[way, False]), rtol=0.03, atol=0)
        assert result[way, True][-1] < result[way, True][0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", ["fsdp1", "fsdp2"])
def test_with_float32_left_in_the_error_s_explanation_names_the_way_out(way: str, size: int) -> None:
    for result in found(size):
        message, explanation = result[way, None]
        assert "dtype" in message
        assert "keep_float32=False" in explanation


def test_a_sharded_checkpoint_resumes_a_cumulative_average_bit_for_bit() -> None:
    for result in once("tests.distributed.test_one_dtype:job", PROCESSES):
        uninterrupted, resumed = result["resumed"]
        assert uninterrupted["1.num_batches_tracked"] == 3
        for name, value in uninterrupted.items():
            assert torch.equal(value, resumed[name]), name


def test_vectors_of_parameters() -> None:
    """`vector_to_parameters` gives all parameters the vector's dtype, which with keep_float32=False is the model's."""
    for keep, dtype in ((False, torch.bfloat16), (True, torch.float32)):
        model = network()
        gb.adopt(model, keep_float32=keep)
        model.bfloat16()
        vector = nn.utils.parameters_to_vector(model.parameters())
        assert vector.dtype == dtype
        before = copy.deepcopy(model)
        nn.utils.vector_to_parameters(vector, model.parameters())
        for mine, other in zip(model.parameters(), before.parameters(), strict=True):
            torch.testing.assert_close(mine.float(), other.float(), rtol=0, atol=0)


@pytest.mark.parametrize("adopted", [True, False])
def test_the_setting_in_adopt_and_in_the_constructors(adopted: bool) -> None:
    for name, args in (("BatchNorm2d", (4,)), ("LayerNorm", (4,)), ("RMSNorm", (4,)), ("GroupNorm", (2, 4)),
                       ("InstanceNorm1d", (4,))):  # fmt: skip
        for keep in (True, False):
            if adopted:
                layer = nn.Sequential(getattr(nn, name)(*args))
                gb.adopt(layer, keep_float32=keep)
                layer = layer[0]
            else:
                layer = getattr(gb, name)(*args, keep_float32=keep)
            dtypes = {t.dtype for t in (*layer.bfloat16().parameters(), *layer.buffers()) if t.is_floating_point()}
            assert dtypes <= {torch.float32 if keep else torch.bfloat16}
            assert ("keep_float32=False" in repr(layer)) == (not keep)
            again = nn.Sequential(layer)
            change = gb.adopt(again, keep_float32=not keep)
            assert change.changed == ["0"]
            assert layer.keep_float32 == (not keep)
            change.undo()
            assert layer.keep_float32 == keep

"""Checkpoint files: what is read from them, what is refused, and what the rules find in them."""

import json
import os
import pickle
import struct

import pytest
import torch
from torch import nn

from gammabeta.diagnostics.check import diagnose
from gammabeta.diagnostics.checkpoint import CheckpointError, record_checkpoint


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 4), nn.LayerNorm(4))
    model.norm_out = nn.RMSNorm(4)
    model.act = nn.PReLU(4)
    for norm in (model[1], model[4]):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 1.5)
    return model


def write_safetensors(path, state):
    """Write the format by hand, so that the reader is tested without the package too."""
    names = {torch.float32: "F32", torch.int64: "I64", torch.bfloat16: "BF16", torch.float16: "F16"}
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for key, tensor in state.items():
        content = tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        header[key] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(content)],
        }
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def save(path, state):
    if path.suffix == ".safetensors":
        write_safetensors(path, state)
    else:
        torch.save(state, path)


def where(path):
    return [(finding.code, finding.where) for finding in diagnose(record_checkpoint(path)).findings]


suffixes = pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".ckpt"])


@suffixes
def test_norms_are_recognized_by_their_keys_with_their_values(tmp_path, suffix):
    model = network()
    path = tmp_path / f"weights{suffix}"
    save(path, model.state_dict())
    record = record_checkpoint(path)
    assert [(norm.name, norm.kind) for norm in record.norms] == [("1", "batch"), ("4", "unknown"), ("norm_out", "rms")]
    batch = record.norm("1")
    assert torch.equal(batch.running_mean, model[1].running_mean)
    assert torch.equal(batch.running_var, model[1].running_var)
    assert torch.equal(batch.weight, model[1].weight)
    assert batch.batches == 0
    assert where(path) == []


@suffixes
def test_the_rules_marked_f_find_what_is_wrong(tmp_path, suffix):
    model = network()
    model[1].running_mean[3] = float("nan")
    model[1].running_var[2] = 1e-9
    with torch.no_grad():
        model[1].weight[1] = 0
        model[4].weight[1] = 0  # whose meaning a file does not tell
    path = tmp_path / f"weights{suffix}"
    save(path, model.state_dict())
    assert where(path) == [("GB102", "1"), ("GB403", "1"), ("GB104", "1")]
    model = network()
    model[1].reset_running_stats()
    save(path, model.state_dict())
    assert where(path) == [("GB103", "1")]
    # It may also be of a new model.
    assert [finding.severity for finding in diagnose(record_checkpoint(path)).findings] == ["note"]
    # Like a FrozenBatchNorm, whose statistics may be 0 and 1 on purpose.
    save(path, {key: value for key, value in model.state_dict().items() if "tracked" not in key})
    assert [finding.severity for finding in diagnose(record_checkpoint(path)).findings] == ["note"]
    model.bfloat16()
    save(path, model.state_dict())
    assert where(path) == [("GB103", "1"), ("GB105", "1")]


def test_the_real_package_s_files_are_read(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    model = network()
    model[1].running_var[0] = -1
    safetensors.save_file(model.state_dict(), tmp_path / "a.safetensors", metadata={"format": "pt"})
    assert where(tmp_path / "a.safetensors") == [("GB102", "1")]


def test_state_dicts_inside_dicts_lose_a_common_beginning_and_keep_what_tells_them_apart(tmp_path):
    state = network().state_dict()
    poisoned = {key: torch.full_like(value, -1) if key == "1.running_var" else value for key, value in state.items()}
    torch.save({"state_dict": poisoned, "epoch": 3}, tmp_path / "a.pt")
    assert where(tmp_path / "a.pt") == [("GB102", "1")]
    optimizer = torch.optim.Adam(network().parameters()).state_dict()
    torch.save({"model": state, "ema": poisoned, "optimizer": optimizer}, tmp_path / "b.pt")
    assert where(tmp_path / "b.pt") == [("GB102", "ema.1")]


def test_of_large_tensors_nothing_is_read(tmp_path):
    """A file of 40 GB of weights, none of which are on the disk, is checked at once: only vectors are read."""
    state = {key: value for key, value in network().state_dict().items() if value.ndim < 2}
    path = tmp_path / "a.safetensors"
    write_safetensors(path, state)
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    size = len(content) - 8 - length
    header["0.weight"] = {"dtype": "F32", "shape": [10**5, 10**5], "data_offsets": [size, size + 4 * 10**10]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    os.truncate(path, 8 + len(text) + size + 4 * 10**10)
    assert [norm.name for norm in record_checkpoint(path).norms] == ["1", "4", "norm_out"]


class Evil:
    ran = False

    def __reduce__(self):
        return setattr, (Evil, "ran", True)


def test_files_that_need_code_are_refused_and_nothing_is_run(tmp_path):
    torch.save({"state_dict": network().state_dict(), "x": Evil()}, tmp_path / "evil.pt")
    torch.save(network(), tmp_path / "module.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil()))
    for name, cls in (("evil.pt", "setattr"), ("module.pt", "torch.nn.modules.container.Sequential"), ("plain.pt", "")):
        with pytest.raises(CheckpointError) as caught:
            record_checkpoint(tmp_path / name)
        assert str(caught.value).startswith(
            f"{tmp_path / name}: expected tensors and plain values, got objects that only code can build"
        )
        assert str(caught.value).endswith(
            f"{cls}); such code is not run, since it could do anything: save model.state_dict() instead."
            if cls
            else "; such code is not run, since it could do anything: save model.state_dict() instead."
        )
    assert not Evil.ran


def test_a_file_without_norms_and_one_that_is_not_there(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "a.pt")
    with pytest.raises(CheckpointError) as caught:
        record_checkpoint(tmp_path / "a.pt")
    assert str(caught.value) == (
        f"{tmp_path / 'a.pt'}: expected keys of norms, such as bn1.running_mean, or norm.weight with norm.bias, got 2 "
        "tensors without such keys: is it a model's state_dict?"
    )
    with pytest.raises(CheckpointError, match="there is no such file"):
        record_checkpoint(tmp_path / "b.pt")

"""Checkpoints of several files: all shards are one record, and what is missing is named."""

import json
import shutil

import pytest
import torch
from tests.diagnostics.test_checkpoint import network, write_safetensors

from gammabeta.diagnostics.check import diagnose
from gammabeta.diagnostics.checkpoint import CheckpointError, read_checkpoint, record_checkpoint


def sharded(folder, stem="model", suffix="safetensors", first=1, *, index=True):
    """Write a network in three shards, with norm 1 poisoned in the first and norm 4 spread over two of them."""
    state = network().state_dict()
    state["1.running_var"] = torch.full((8,), -1.0)
    parts = [
        {key: value for key, value in state.items() if key[0] in "01"},
        {"4.weight": state["4.weight"], "3.weight": state["3.weight"], "3.bias": state["3.bias"]},
        {key: value for key, value in state.items() if key == "4.bias" or not key[0].isdigit()},
    ]
    names = [f"{stem}-{i + first:05d}-of-00003.{suffix}" for i in range(3)]
    folder.mkdir(exist_ok=True)
    for name, part in zip(names, parts, strict=True):
        if suffix == "safetensors":
            write_safetensors(folder / name, part)
        else:
            torch.save(part, folder / name)
    if index:
        weights = {key: name for name, part in zip(names, parts, strict=True) for key in part}
        content = {"metadata": {"total_size": 1}, "weight_map": weights}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(content))
    return names


def names(path):
    return [norm.name for norm in record_checkpoint(path).norms]


EVERY = ["1", "4", "norm_out"]


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize(("stem", "suffix"), [("model", "safetensors"), ("pytorch_model", "bin")])
@pytest.mark.parametrize("first", [1, 0])
def test_folder_index_and_shard_stand_for_the_whole(tmp_path, stem, suffix, first, index):
    folder = tmp_path / "checkpoint 7"
    written = sharded(folder, stem, suffix, first, index=index)
    (folder / "config.json").write_text("{}")
    (folder / "training_args.bin").write_bytes(b"\x80\x02c__main__\nArguments\n.")
    targets = [folder, *(folder / name for name in written)]
    targets += [folder / f"{stem}.{suffix}.index.json"] if index else []
    for target in targets:
        assert names(target) == EVERY
        assert [file.name for file in read_checkpoint(target).files] == written
        assert [finding.where for finding in diagnose(record_checkpoint(target), select="GB102").findings] == ["1"]


@pytest.mark.parametrize("index", [True, False])
def test_missing_shards_are_named(tmp_path, index):
    written = sharded(tmp_path, index=index)
    (tmp_path / written[1]).unlink()
    targets = [tmp_path / "model.safetensors.index.json"] if index else [tmp_path / written[0]]
    for target in targets:
        with pytest.raises(CheckpointError) as caught:
            record_checkpoint(target)
        assert str(caught.value) == (
            f"{target}: expected all 3 shards of the checkpoint, got a folder without {written[1]}: download or "
            "copy the rest."
        )
    with pytest.raises(CheckpointError, match=f"without {written[1]}"):
        record_checkpoint(tmp_path)


def test_of_many_missing_shards_a_few_are_named(tmp_path):
    torch.save(network().state_dict(), tmp_path / "model-00001-of-00400.bin")
    with pytest.raises(CheckpointError, match=r"without model-00002-of-00400.bin, .*, .* and 396 more: download"):
        record_checkpoint(tmp_path)
    torch.save(network().state_dict(), tmp_path / "model-000001-of-999999.bin")
    with pytest.raises(CheckpointError, match="expected at most 10,000 shards"):
        record_checkpoint(tmp_path / "model-000001-of-999999.bin")


def test_one_of_one_is_a_file(tmp_path):
    torch.save(network().state_dict(), tmp_path / "model-00001-of-00001.bin")
    assert names(tmp_path) == names(tmp_path / "model-00001-of-00001.bin") == EVERY


def test_both_formats_in_a_folder(tmp_path):
    sharded(tmp_path, index=False)
    sharded(tmp_path, "pytorch_model", "bin", index=False)
    assert read_checkpoint(tmp_path).files[0].suffix == ".safetensors"


@pytest.mark.parametrize("name", ["../secret.bin", "/etc/passwd", "a/b.bin", "..", "", "a\\b", 3, None])
def test_an_index_names_files_of_its_own_folder(tmp_path, name):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match=r"expected names of files in the same folder in weight_map, got"):
        record_checkpoint(tmp_path)


def test_indices_that_are_none(tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text('{"weight_map": {}}')
    with pytest.raises(CheckpointError, match="expected names of shards in weight_map, got none"):
        record_checkpoint(tmp_path)
    path.write_text('{"weight_map": {"a": "model.safetensors.index.json"}}')
    with pytest.raises(CheckpointError, match="expected a shard with tensors, got another index"):
        record_checkpoint(tmp_path)
    for text in ('{"weight_map": []}', "[" * 100_000, '{"weight_map": '):
        path.write_text(text)
        for target in (path, tmp_path):
            with pytest.raises(CheckpointError, match="got JSON without a weight_map"):
                record_checkpoint(target)


def test_a_folder_with_one_checkpoint_is_that_one(tmp_path):
    torch.save(network().state_dict(), tmp_path / "best.pth.tar")
    (tmp_path / "log.txt").write_text("hello")
    (tmp_path / "README").write_text("hello")
    assert names(tmp_path) == EVERY
    torch.save({}, tmp_path / "optimizer.pt")
    with pytest.raises(CheckpointError) as caught:
        record_checkpoint(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: expected a checkpoint, got a folder with 2 (best.pth.tar, optimizer.pt): name one of them."
    )
    shutil.move(tmp_path / "best.pth.tar", tmp_path / "pytorch_model.bin")  # as transformers' trainer leaves them
    assert names(tmp_path) == EVERY


def test_folders_without_a_checkpoint(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        record_checkpoint(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: expected a checkpoint, got a folder without one: name the file with the weights."
    )
    (tmp_path / "snapshots").mkdir()
    with pytest.raises(CheckpointError, match="got a folder without one; its folders are snapshots: name the file"):
        record_checkpoint(tmp_path)


def test_a_folder_of_torch_distributed_is_named_with_what_to_do(tmp_path):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    state = network().state_dict()
    dcp.save({"model": state}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    with pytest.raises(CheckpointError) as caught:
        record_checkpoint(tmp_path / "dcp")
    assert str(caught.value) == (
        f"{tmp_path / 'dcp'}: expected a checkpoint, got a folder of torch.distributed.checkpoint: write it as one "
        "file with `python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt` "
        "(dcp_to_torch_save), and check that."
    )
    dcp_to_torch_save(tmp_path / "dcp", tmp_path / "model.pt")  # what it says to do, as that command does
    assert names(tmp_path / "model.pt") == EVERY


def test_other_folders_are_named(tmp_path):
    (tmp_path / "zero_to_fp32.py").write_text("")
    with pytest.raises(
        CheckpointError, match=r"got a DeepSpeed checkpoint: write it as one file with the zero_to_fp32"
    ):
        record_checkpoint(tmp_path)


def folds(folder, *numbers, total=2, stem="fold"):
    """Write complete state_dicts named by number, of which the first is poisoned."""
    folder.mkdir(exist_ok=True)
    for number in numbers:
        state = network().state_dict()
        if number == numbers[0]:
            state["1.running_var"] = torch.full((8,), -1.0)
        torch.save(state, folder / f"{stem}-{number}-of-{total}.pt")


@pytest.mark.parametrize("numbers", [(1, 2), (0, 1)])
def test_complete_checkpoints_that_are_numbered_are_no_shards(tmp_path, numbers):
    folds(tmp_path, *numbers)
    first, second = (tmp_path / f"fold-{number}-of-2.pt" for number in numbers)
    for path, other, where in ((first, second, ["1"]), (second, first, [])):
        checkpoint = read_checkpoint(path)
        assert checkpoint.files == (path,)
        assert [finding.where for finding in diagnose(checkpoint.record, select="GB102").findings] == where
        assert checkpoint.notes == (
            f"only {path.name} was read: {other.name} has tensors of the same names, such as 0.bias, so it is another "
            "checkpoint and no shard of this one",
        )
    with pytest.raises(CheckpointError, match=r"got a folder with 2 \(fold-.*, fold-.*\): name one of them"):
        record_checkpoint(tmp_path)


def test_of_many_complete_checkpoints_only_the_named_is_read(tmp_path):
    folds(tmp_path, 1, 2, 3, 4, 5, total=5)
    checkpoint = read_checkpoint(tmp_path / "fold-4-of-5.pt")
    assert [file.name for file in checkpoint.files] == ["fold-4-of-5.pt"]
    assert checkpoint.notes[0].startswith("only fold-4-of-5.pt was read: the other 4 files of this name have tensors")


def test_a_number_in_a_name_alone_makes_no_shard(tmp_path):
    folds(tmp_path, 2, total=5, stem="day")
    for target in (tmp_path / "day-2-of-5.pt", tmp_path):
        checkpoint = read_checkpoint(target)
        assert [norm.name for norm in checkpoint.record.norms] == EVERY
        assert checkpoint.notes == (
            "only day-2-of-5.pt was read: of the 5 files that its name counts, day-1-of-5.pt, day-3-of-5.pt, "
            "day-4-of-5.pt and 1 more are not there, and no index says that they are shards of one checkpoint",
        )
    folds(tmp_path, 4, total=5, stem="day")
    assert names(tmp_path / "day-4-of-5.pt") == EVERY
    with pytest.raises(CheckpointError, match=r"got a folder with 2 .*: name one of them"):
        record_checkpoint(tmp_path)
    folds(tmp_path, 7, total=5, stem="week")
    assert read_checkpoint(tmp_path / "week-7-of-5.pt").notes == ()


def test_an_index_says_that_files_are_shards(tmp_path):
    """Tensors that two shards of an index share are no reason to read only one."""
    written = sharded(tmp_path)
    shutil.copy(tmp_path / written[0], tmp_path / written[1])
    assert [file.name for file in read_checkpoint(tmp_path / written[2]).files] == written

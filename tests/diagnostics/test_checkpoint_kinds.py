"""Files by their content: checkpoints under any name are read, and what is none is named as what it is."""

import argparse
import bz2
import collections
import gzip
import io
import json
import lzma
import pathlib
import pickle
import struct
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from tests.diagnostics.test_checkpoint import network, write_safetensors
from torch import nn

from gammabeta.diagnostics.check import diagnose
from gammabeta.diagnostics.checkpoint import CheckpointError, read_checkpoint, record_checkpoint


def poisoned():
    model = network()
    model[1].running_var[0] = -1
    return model.state_dict()


def where(path):
    return [(finding.code, finding.where) for finding in diagnose(record_checkpoint(path)).findings]


def as_safetensors(state, path):
    write_safetensors(path, state)


def as_zip(state, path):
    torch.save(state, path)


def as_legacy(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


def as_pickle_2(state, path):
    path.write_bytes(pickle.dumps(state, 2))


def as_pickle_5(state, path):
    path.write_bytes(pickle.dumps(state, 5))


def as_arrays(state, path):
    arrays = {key: tensor.numpy() for key, tensor in state.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "someone", "matching_heuristics": True}, 4))


def as_arrays_in_parameters(state, path):
    path.write_bytes(pickle.dumps({key: nn.Parameter(v) if v.is_floating_point() else v for key, v in state.items()}))


WRITERS = [as_safetensors, as_zip, as_legacy, as_pickle_2, as_pickle_5, as_arrays, as_arrays_in_parameters]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    "name", ["model_best.pth.tar", "weights.PT", "weights.pkl", "weights", "a.safetensors", "x.txt"]
)
def test_a_checkpoint_is_read_whatever_its_name(tmp_path, write, name):
    write(poisoned(), tmp_path / name)
    assert where(tmp_path / name) == [("GB102", "1")]
    record = record_checkpoint(tmp_path / name)
    assert torch.equal(record.norm("1").running_mean, network()[1].running_mean)
    assert torch.equal(record.norm("4").weight, network()[4].weight)
    assert int(record.norm("1").num_batches_tracked) == 0


def test_a_compressed_archive_of_torch_save_is_unpacked(tmp_path):
    """torch.save does not compress, and torch maps such an archive as if nothing did."""
    torch.save(poisoned(), tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert where(tmp_path / "packed.pt") == [("GB102", "1")]


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_keep_their_order(tmp_path, order):
    array = np.asarray(np.arange(12.0).reshape(3, 4), order=order)[1]
    state = {
        "norm.weight": np.ascontiguousarray(array),
        "norm.bias": np.zeros(4),
        "matrix": np.ones((2, 3), order=order),
    }
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(state))
    record = record_checkpoint(tmp_path / "a.pkl")
    assert record.norm("norm").weight.tolist() == [4, 5, 6, 7]


def zipped(*names):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return stream.getvalue()


def tarred(*names):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return stream.getvalue()


def npz():
    stream = io.BytesIO()
    np.savez(stream, a=np.ones(3))
    return stream.getvalue()


def scripted():
    stream = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.BatchNorm1d(3).eval(), torch.randn(2, 3)), stream)
    return stream.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 102530333\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in \xc2\xb7 GitHub</title></head></html>"
EARLY = "did the download or the copy end early?"
UNPACK = "unpack it, and check the file that is inside."
OTHERS = "gammabeta reads what torch.save and safetensors write."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", f"an empty file: {EARLY}"),
        (POINTER, "a Git LFS pointer, not the file that it stands for: run `git lfs pull`."),
        (PAGE, "an HTML page (Sign in · GitHub): the download got a page in place of the file, such as a login or an "
               "error."),
        (b"<HTML>404", "an HTML page: the download got a page in place of the file, such as a login or an error."),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "an XML file: the download may have got an error in "
                                                                   "place of the file; open it to see."),
        (b'{"error": "Repository not found"}', "JSON without a weight_map: name the file with the weights, or the "
                                               "index of its shards."),
        (gzip.compress(b"x", mtime=0), f"a gzip archive: {UNPACK}"),
        (bz2.compress(b"x"), f"a bzip2 archive: {UNPACK}"),
        (lzma.compress(b"x"), f"an xz archive: {UNPACK}"),
        (b"7z\xbc\xaf\x27\x1c\0\4", f"a 7z archive: {UNPACK}"),
        (b"\x89HDF\r\n\x1a\n\0", f"an HDF5 file, as Keras writes them: {OTHERS}"),
        (b"\x08\x08\x12\x07pytorch", "an ONNX model: gammabeta reads what torch.save and safetensors write: check the "
                                     "model from which it was exported."),
        (zipped("metadata.json", "config.json", "model.weights.h5"), f"a Keras model: {OTHERS}"),
        (zipped("run/a.txt", "run/b.pt"), f"a zip archive of other files (run/a.txt, run/b.pt): {UNPACK}"),
        (b"PK\x03\x04 torn", f"a zip archive that is damaged: {EARLY}"),
        (tarred("weights/a.pt"), f"a tar archive (of weights/a.pt, …): {UNPACK}"),
        (tarred("sys_info", "pickle"), "a tar archive, which is what torch.save wrote before torch 0.1.10: where you "
         "trust the file, torch.load(file, weights_only=False) reads it: save its state_dict again."),
        (npz(), "NumPy arrays (.npz): save the arrays as a dict of tensors with torch.save, and check that."),
        (b"\x93NUMPY\1\0", f"a NumPy array (.npy): {OTHERS}"),
        (scripted(), "a TorchScript archive, whose code would have to run: save torch.jit.load(file).state_dict() with "
                     "torch.save, and check that."),
        (bytes(5000), "5,000 bytes that begin with zeros: did the download or the copy fail?"),
        (b"GGUF\3\0\0\0", "a GGUF file, as llama.cpp reads them: gammabeta reads what torch.save and safetensors "
                          "write: check the model from which it was converted."),
        (b"hello", f"a file of another kind: {OTHERS}"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors", "weights"])
def test_what_is_no_checkpoint_is_named_as_what_it_is(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        record_checkpoint(tmp_path / name)
    assert str(caught.value) == f"{tmp_path / name}: expected a checkpoint, got {message}"


def test_links_pipes_and_files_that_may_not_be_read(tmp_path):
    (tmp_path / "link.pt").symlink_to("gone.pt")
    with pytest.raises(CheckpointError) as caught:
        record_checkpoint(tmp_path / "link.pt")
    assert str(caught.value) == f"{tmp_path / 'link.pt'}: is a link to gone.pt, which does not exist."
    if sys.platform != "win32":
        with pytest.raises(CheckpointError, match=r"/dev/zero: expected a file or a folder, got a device or a pipe\."):
            record_checkpoint("/dev/zero")


def test_a_file_that_cannot_be_opened(tmp_path, monkeypatch):
    """As root, permissions stop nobody."""
    torch.save(poisoned(), tmp_path / "a.pt")
    opened = type(tmp_path).open

    def refuse(path, *arguments, **options):
        if path.name == "a.pt":
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(type(tmp_path), "open", refuse)
    with pytest.raises(CheckpointError) as caught:
        record_checkpoint(tmp_path / "a.pt")
    assert str(caught.value) == f"{tmp_path / 'a.pt'}: cannot be read: Permission denied."


class Evil:
    ran = False

    def __reduce__(self):
        return setattr, (Evil, "ran", True)


class Posing:
    """What changes how the unpickler works, by setting attributes of what it may name."""

    def __reduce__(self):
        return collections.OrderedDict, (), ({}, {"__setitem__": print})


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_plain_pickle_runs_nothing(tmp_path, protocol):
    for name, value in {"evil": Evil(), "inside": {"norm.weight": Evil()}, "class": collections.ChainMap}.items():
        (tmp_path / name).write_bytes(pickle.dumps(value, protocol))
        with pytest.raises(CheckpointError, match=r"got objects that only code can build \("):
            record_checkpoint(tmp_path / name)
    assert not Evil.ran
    # BUILD on a class or function: \x8c… pushes names, \x93 the global, then a state of attributes, then b.
    for name in (b"torch._utils\n_rebuild_tensor_v2", b"numpy\ndtype", b"collections\nOrderedDict"):
        (tmp_path / "build").write_bytes(b"\x80\x02c" + name + b"\n}X\x01\x00\x00\x00aK\x01sb.")
        with pytest.raises(CheckpointError, match="only code can build"):
            record_checkpoint(tmp_path / "build")


def test_quantized_sparse_and_other_vectors_are_left_out_with_a_word(tmp_path):
    state = network().state_dict()
    quantized = torch.quantize_per_tensor(torch.randn(4), 0.1, 0, torch.qint8)
    extra = {
        "q1.weight": quantized,
        "q2.weight": quantized,
        "s.weight": torch.randn(4).to_sparse(),
        "f.weight": torch.ones(4).to(torch.float8_e4m3fn),
        "m.weight": torch.empty(4, device="meta"),
        "c.weight": torch.ones(4, dtype=torch.complex64),
        "matrix": torch.quantize_per_tensor(torch.randn(4, 4), 0.1, 0, torch.qint8),  # no norm has one
    }
    torch.save({**state, **extra}, tmp_path / "a.pt")
    read = read_checkpoint(tmp_path / "a.pt")
    assert [norm.name for norm in read.record.norms] == ["1", "4", "norm_out"]
    assert read.notes == (
        "left out: 1 8-bit vector, 1 complex tensor, 2 quantized tensors, 1 sparse tensor, 1 vector without values",
    )
    torch.save(extra, tmp_path / "b.pt")
    with pytest.raises(
        CheckpointError, match=r"got 7 tensors without such keys \(left out: 1 8-bit vector, .*\): is it"
    ):
        record_checkpoint(tmp_path / "b.pt")
    torch.save(state, tmp_path / "c.pt")
    assert read_checkpoint(tmp_path / "c.pt").notes == ()


def test_vectors_that_do_not_belong_together_are_left_out(tmp_path):
    state = network().state_dict()
    state |= {
        "a.running_mean": torch.zeros(4), "a.running_var": torch.ones(5),
        "b.running_mean": torch.zeros(4, dtype=torch.long), "b.running_var": torch.ones(4),
        "c.running_mean": torch.zeros(()), "c.running_var": torch.ones(()),
        "d.running_mean": torch.zeros(4), "d.running_var": torch.ones(4), "d.num_batches_tracked": torch.tensor([1, 2]),
        "e.weight": torch.ones(4, dtype=torch.int8), "e.bias": torch.ones(4, dtype=torch.int8),
        "f.running_mean": torch.zeros(4), "f.running_var": torch.ones(4),
        "f.num_batches_tracked": torch.tensor(float("nan")),
    }  # fmt: skip
    torch.save(state, tmp_path / "a.pt")
    read = read_checkpoint(tmp_path / "a.pt")
    assert [norm.name for norm in read.record.norms] == ["1", "4", "norm_out"]
    assert read.notes == (
        "left out: 2 layers whose num_batches_tracked is no number, 3 layers whose vectors are no floats, "
        "1 layer whose vectors differ in length",
    )
    diagnose(read.record)


def test_names_that_a_terminal_would_obey_are_escaped(tmp_path):
    state = {"\x1b[2Jbn.running_mean": torch.full((4,), torch.nan), "\x1b[2Jbn.running_var": torch.ones(4)}
    write_safetensors(tmp_path / "a.safetensors", state)
    (finding,) = diagnose(record_checkpoint(tmp_path / "a.safetensors"), select="GB102").findings
    assert finding.where == "\\x1b[2Jbn"


def test_headers_whose_length_looks_like_another_format_are_read(tmp_path):
    """The first bytes are a number: 640 begins as a pickle does, and 19280 as a zip archive."""
    state = {key: value for key, value in network().state_dict().items() if value.ndim < 2}
    write_safetensors(tmp_path / "a", state)
    content = (tmp_path / "a").read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    for wanted in (0x0480, 0x4B50, 0x8B1F):
        text = json.dumps(header).encode()
        (tmp_path / "b").write_bytes(struct.pack("<Q", wanted) + text.ljust(wanted) + content[8 + length :])
        assert where(tmp_path / "b") == []


INERT = {
    "namespace": lambda: argparse.Namespace(lr=0.1, out=pathlib.Path("runs"), sizes=[1, 2]),
    "scalar": lambda: np.float64(3.0),
    "array": lambda: np.arange(3),
    "defaultdict": lambda: collections.defaultdict(list, a=[1]),
    "defaultdict of ints": lambda: collections.defaultdict(int, a=1),
    "counter": lambda: collections.Counter("aab"),
    "path": lambda: pathlib.Path("runs/1"),
    "pure path": lambda: pathlib.PureWindowsPath("c:/runs"),
}


@pytest.mark.parametrize("what", INERT)
@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_plain_values_beside_the_tensors_are_passed_over(tmp_path, what, how):
    path = tmp_path / "best.pth.tar"
    content = {"state_dict": network().state_dict(), "args": INERT[what]()}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    assert [norm.name for norm in record_checkpoint(path).norms] == ["1", "4", "norm_out"]


@pytest.mark.parametrize("how", ["zip", "pickle"])
def test_of_plain_values_no_code_runs(tmp_path, how):
    """A class of the user's among them is refused as before."""
    path = tmp_path / "best.pt"
    content = {"state_dict": network().state_dict(), "args": argparse.Namespace(what=Exploit())}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match="objects that only code can build"):
        record_checkpoint(path)
    assert not Exploit.ran


class Exploit:
    ran = False

    def __reduce__(self):
        return _exploit, ()


def _exploit():
    Exploit.ran = True


@pytest.mark.parametrize("how", ["zip", "legacy"])
def test_an_expanded_vector_contradicts_nothing(tmp_path, how):
    path = tmp_path / "expanded.pt"
    state = {"bn.weight": torch.ones(1).expand(5), "bn.bias": torch.zeros(9)[4:]}
    torch.save(state, path, _use_new_zipfile_serialization=how == "zip")
    assert [norm.name for norm in record_checkpoint(path).norms] == ["bn"]


@pytest.mark.parametrize("write", [as_safetensors, as_zip, as_legacy])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_matrix_that_is_not_finite_is_found(tmp_path, monkeypatch, write, own, dtype):
    if own:
        monkeypatch.setitem(sys.modules, "safetensors", None)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LayerNorm(8)).to(dtype)
    path = tmp_path / "weights"
    write(model.state_dict(), path)
    assert where(path) == []
    with torch.no_grad():
        model[0].weight[0, 0, 1, 1] = float("nan")
    write(model.state_dict(), path)
    (finding,) = diagnose(record_checkpoint(path)).findings
    assert (finding.code, finding.where, finding.evidence["tensors"]) == ("GB404", "0", 1)
    assert "0.weight" in finding.message


def test_matrices_beyond_a_limit_are_said(tmp_path, monkeypatch):
    monkeypatch.setattr("gammabeta.diagnostics.checkpoint._MOST_BYTES", 1000)
    torch.save({"a.weight": torch.ones(100, 2), "b.weight": torch.ones(100, 2), **poisoned()}, tmp_path / "a.pt")
    (note,) = read_checkpoint(tmp_path / "a.pt").notes
    assert note.startswith("not looked at: ")
    assert note.endswith(" tensors of several axes, beyond 1e-06 GB of them")


@pytest.mark.parametrize("write", [as_zip, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_list_is_named_as_one(tmp_path, write):
    write([network().state_dict(), network().state_dict()], tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"which names its tensors, got a list of 2: save model\.state_dict"):
        record_checkpoint(tmp_path / "a.pt")

"""Files that are damaged or meant to do harm: each is refused in a sentence, and nothing else ever comes of it."""

import io
import json
import pickle
import random
import struct
import zipfile

import pytest
import torch
from tests.diagnostics.test_checkpoint import network, write_safetensors

from gammabeta.diagnostics.check import diagnose
from gammabeta.diagnostics.checkpoint import CheckpointError, record_checkpoint
from gammabeta.diagnostics.checkpoints import safetensors_reader


def vector(start=0, end=16, **other):
    return {"dtype": "F32", "shape": [4], "data_offsets": [start, end], **other}


def file_with(header, data=bytes(16)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


DEEP = b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
HEADERS = {
    "nests values too deeply": file_with(DEEP),
    "cannot be read": file_with(b'{"a": '),
    "has the key 'bn.weight' twice": file_with(
        b'{"bn.weight":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"bn.weight":{"dtype":"F32","shape":[4],'
        b'"data_offsets":[0,16]}}'
    ),
    "has the number NaN": file_with(b'{"a": NaN}'),
    "has a key that is not Unicode": file_with(b'{"\\ud800": {}}'),
    "has __metadata__ other than texts": file_with({"__metadata__": {"a": [1]}}),
    "has no dtype, shape and data_offsets at 'a'": file_with({"a": 3}),
    "has the dtype \"['F32']\" at 'a'": file_with({"a": vector(dtype=["F32"])}),
    "has the dtype 'F32; rm' at 'a'": file_with({"a": vector(dtype="F32; rm")}),
    "has a shape that is none at 'a'": file_with({"a": vector(shape=[-4])}),
    "has a shape that is none at 'b'": file_with({"b": vector(shape=[True, 4])}),
    "has a shape that is none at 'c'": file_with({"c": vector(shape=[4.0])}),
    "has a shape that is none at 'd'": file_with({"d": vector(shape=[1] * 100)}),
    "has a shape that is none at 'e'": file_with({"e": vector(shape="4")}),
    "has a shape with more than 2^63 values at 'a'": file_with({"a": vector(shape=[2**40, 2**40])}),
    "gives 'a' 16 bytes, which its shape and dtype are not": file_with({"a": vector(shape=[5])}),
    "has data_offsets that are none at 'a'": file_with({"a": vector(-16, 0)}),
    "has data_offsets that are none at 'b'": file_with({"b": vector(16, 0)}),
    "has data_offsets that are none at 'c'": file_with({"c": vector(False, 16)}),
    "has data_offsets that are none at 'd'": file_with({"d": {**vector(), "data_offsets": [0, 16, 32]}}),
    "has data_offsets that are none at 'e'": file_with({"e": vector(0, 2**64)}),
    "has data_offsets that overlap at 'b'": file_with({"a": vector(), "b": vector(8, 24)}, bytes(24)),
    "has data_offsets that leave a gap at 'a'": file_with({"a": vector(4, 20)}, bytes(20)),
    "describes 16 bytes of data where 20 follow": file_with({"a": vector()}, bytes(20)),
}


@pytest.fixture(params=["package", "own"])
def reader(request, monkeypatch):
    """The reader by the package safetensors, and the one without it."""
    if request.param == "own":
        monkeypatch.setattr(safetensors_reader, "_installed", lambda: False)
    else:
        pytest.importorskip("safetensors")
    return request.param


@pytest.mark.parametrize(("says", "content"), HEADERS.items(), ids=range(len(HEADERS)))
def test_a_hostile_header_is_refused_in_a_sentence(tmp_path, reader, says, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        record_checkpoint(path)
    assert str(caught.value) == f"{path}: expected a safetensors file, got one whose header {says}."


@pytest.mark.parametrize("content", HEADERS.values(), ids=range(len(HEADERS)))
def test_the_package_refuses_the_same_headers(tmp_path, content):
    """Except for two: it takes the last of two entries with one key, and any number of axes."""
    safetensors = pytest.importorskip("safetensors")
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    if b"bn.weight" in content or b"1, 1, 1, 1" in content:
        return
    with pytest.raises((safetensors.SafetensorError, RuntimeError)):
        safetensors.safe_open(str(path), framework="pt")


def test_a_file_that_ends_early_is_told_so(tmp_path, reader):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, network().state_dict())
    content = path.read_bytes()
    for kept in (len(content) - 8, 500, 9):
        path.write_bytes(content[:kept])
        with pytest.raises(CheckpointError, match=r"did the download or the copy end early\?$"):
            record_checkpoint(path)


def test_a_header_of_a_million_tensors(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_reader, "LARGEST_COUNT", 1000)
    header = {f"k{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(1001)}
    (tmp_path / "a").write_bytes(file_with(header, b""))
    with pytest.raises(CheckpointError, match=r"header names 1,001 tensors, over 1,000\."):
        record_checkpoint(tmp_path / "a")


def test_both_readers_give_the_same(tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    state = network().state_dict()
    state |= {"half.weight": torch.randn(4).half(), "half.bias": torch.randn(4).half(), "empty": torch.empty(0)}
    state |= {"brain.weight": torch.randn(4).bfloat16(), "brain.bias": torch.randn(4).bfloat16()}
    path = tmp_path / "a.safetensors"
    write_safetensors(path, state)
    ours_used = []
    monkeypatch.setattr(safetensors_reader, "_tensors", lambda *arguments: ours_used.append(1) or {})
    by_package = safetensors_reader.read_safetensors(path)
    assert not ours_used
    monkeypatch.undo()
    monkeypatch.setattr(safetensors_reader, "_installed", lambda: False)
    ours = safetensors_reader.read_safetensors(path)
    assert list(ours.vectors) == list(by_package.vectors) == [key for key, value in state.items() if value.ndim < 2]
    for key, value in ours.vectors.items():
        assert value.dtype == by_package.vectors[key].dtype == state[key].dtype
        assert torch.equal(value, by_package.vectors[key])
        assert torch.equal(value, state[key])
    assert ours.tensors == by_package.tensors == len(state)


def test_dtypes_that_no_norm_has_are_left_out(tmp_path, reader):
    data = b"".join(t.numpy().tobytes() for t in (torch.zeros(4), torch.ones(4)))
    header = {"bn.running_mean": vector(), "bn.running_var": vector(16, 32)}
    header |= {"q.weight": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [32, 36]}}
    header |= {"new.weight": {"dtype": "F2_NEW", "shape": [4], "data_offsets": [36, 37]}}
    (tmp_path / "a").write_bytes(file_with(header, data + bytes(5)))
    contents = safetensors_reader.read_safetensors(tmp_path / "a")
    assert contents.left_out == {"vector of dtype F8_E4M3": 1, "vector of dtype F2_NEW": 1}
    assert list(contents.vectors) == ["bn.running_mean", "bn.running_var"]


def test_archives_that_fill_the_memory_are_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    with pytest.raises(CheckpointError) as caught:
        record_checkpoint(tmp_path / "bomb.pt")
    assert str(caught.value).endswith(
        "unpacks to 50,000,000: it is not unpacked, since it may be meant to fill the memory."
    )


def storage(kind, number):
    """A pickle of torch.save's that declares a storage and a vector of this many values."""

    class Declared:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Storage(), 0, (number,), (1,), False, {})

    class Storage:
        pass

    class Pickler(pickle._Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", number) if isinstance(value, Storage) else None

    stream = io.BytesIO()
    Pickler(stream, 2).dump({"norm.weight": Declared(), "norm.bias": Declared()})
    return stream.getvalue()


@pytest.mark.parametrize("number", [10**6, 10**12, 2**62])
def test_vectors_that_are_declared_and_not_there(tmp_path, number):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", storage("zip", number))
        archive.writestr("a/data/0", bytes(16))
        archive.writestr("a/version", b"3\n")
        archive.writestr("a/byteorder", b"little")
    with pytest.raises(CheckpointError):
        record_checkpoint(tmp_path / "a.pt")


def test_a_vector_of_one_value_repeated_a_billion_times(tmp_path):
    state = {"norm.weight": torch.ones(1).expand(9_000_000), "norm.bias": torch.ones(1).expand(9_000_000)}
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(
        CheckpointError, match=r"got norm\.weight of 9,000,000 values with 4 bytes of data: the file contr"
    ):
        record_checkpoint(tmp_path / "a.pt")


def test_dicts_without_an_end(tmp_path):
    circle = {}
    circle["again"] = circle
    torch.save(circle, tmp_path / "circle.pt")
    deep = {}
    for _ in range(200):
        deep = {"a": deep}
    torch.save(deep, tmp_path / "deep.pt")
    many = {"norm.weight": torch.ones(4)}
    for _ in range(40):
        many = {"a": many, "b": many}
    torch.save(many, tmp_path / "many.pt")
    for name in ("circle.pt", "deep.pt", "many.pt"):
        with pytest.raises(CheckpointError, match="got dicts inside dicts without an end, or over 1,000,000 entries"):
            record_checkpoint(tmp_path / name)


def damaged(content, chance):
    """A copy of a file with a piece cut off, inserted, or some bytes changed; mostly near its beginning or end."""
    content = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        part = chance.choice((16, 200, 2000, len(content)))
        at = min(chance.randrange(part), len(content) - 1)
        at = len(content) - 1 - at if chance.random() < 0.3 else at
        kind = chance.randrange(5)
        if kind == 0:
            del content[at + 1 :]
        elif kind == 1:
            content[at] ^= 1 << chance.randrange(8)
        elif kind == 2:
            content[at] = chance.choice(b'\x00\xff{}[]"0919.,:(\x80R\x85b')
        elif kind == 3:
            del content[at : at + chance.randrange(1, 9)]
        else:
            content[at:at] = chance.randbytes(chance.randrange(1, 9))
        if not content:
            break
    return bytes(content)


def written(path, form):
    state = network().state_dict()
    if form == "safetensors":
        write_safetensors(path, state)
    elif form == "pickle":
        path.write_bytes(pickle.dumps({key: value.numpy() for key, value in state.items()}, 4))
    elif form == "tensors":
        path.write_bytes(pickle.dumps(state, 2))
    else:
        torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=form == "zip")
    return path.read_bytes()


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy", "pickle", "tensors"])
def test_damaged_files_are_refused_or_checked_and_nothing_else(tmp_path, reader, form):
    whole = written(tmp_path / "whole", form)
    chance = random.Random(form)
    refused = []
    for i in range(150):
        path = tmp_path / f"a{i}"  # a new one each time: torch maps it
        path.write_bytes(damaged(whole, chance))
        try:
            record = record_checkpoint(path)
        except CheckpointError as error:
            refused.append(str(error))
            continue
        diagnose(record)
    assert len(refused) > 30
    assert not any("\n" in text for text in refused)

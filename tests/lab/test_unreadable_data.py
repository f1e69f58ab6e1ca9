"""Files of users that are damaged, denied, oddly named or of another format: one sentence says which and what to do."""

import io
import os
import random
import re
import shutil
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.lab.test_data import HEADER, IN_EACH, cases, function, images, loaded, painted, written

from gammabeta.lab.decoding import decode
from gammabeta.lab.images import folder as folders
from gammabeta.lab.sources import load_text, source
from gammabeta.lab.task import TaskError


@pytest.fixture
def open_folder():
    """A folder that every user may enter."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


class Privileges:
    """Those of the superuser, to whom permissions do not apply."""

    def drop(self):
        if os.getuid() == 0:
            os.seteuid(65534)

    def back(self):
        if os.getuid() == 0:
            os.seteuid(0)


@pytest.fixture
def privileges():
    if not hasattr(os, "geteuid"):
        pytest.skip("Windows has other permissions")
    found = Privileges()
    yield found
    found.back()


def refusal(data):
    """Return the one sentence with which data are refused."""
    with pytest.raises(TaskError) as refused:
        loaded(data)
    text = str(refused.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


# --- .npz ---

EXPECTED = "expected a numpy .npz archive with x_train, y_train, x_test, y_test"


def zipped(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_an_npz_that_is_cut_off_is_named(tmp_path):
    np.savez(tmp_path / "own.npz", **images())
    whole = (tmp_path / "own.npz").read_bytes()
    (tmp_path / "own.npz").write_bytes(whole[: len(whole) // 2])
    assert refusal(f"mnist:{tmp_path}/own.npz") == (
        f"own.npz: {EXPECTED}, and could not read it as one (BadZipFile: File is not a zip file): it is damaged or cut "
        "off; copy it again, or write it again with numpy.savez."
    )
    (tmp_path / "own.npz").write_bytes(b"")
    assert refusal(f"mnist:{tmp_path}/own.npz") == (f"own.npz: {EXPECTED}, got an empty file: write or copy it again.")


def test_a_zip_of_other_files_is_told_from_an_npz(tmp_path):
    zipped(tmp_path / "own.npz", {f"image{index}.png": b"" for index in range(20)})
    shown = ", ".join(f"image{index}.png" for index in range(8))
    assert refusal(f"cifar10:{tmp_path}/own.npz") == (
        f"own.npz: expected the arrays x_train, y_train, x_test, y_test, found {shown}, …: write them under these "
        "names, with numpy.savez."
    )
    zipped(tmp_path / "own.npz", dict.fromkeys(("x_train", "y_train", "x_test", "y_test"), b"text"))
    assert refusal(f"cifar10:{tmp_path}/own.npz") == (
        "own.npz: expected x_train as an array of numbers, got another file in the archive: write it again with "
        "numpy.savez."
    )


def test_an_array_of_objects_is_named(tmp_path):
    np.savez(tmp_path / "own.npz", **images(y_train=np.array(["cat", None] * 30, dtype=object)))
    assert refusal(f"mnist:{tmp_path}/own.npz") == (
        "own.npz: expected y_train as an array of numbers, got Python objects: convert it, as x.astype(np.float32) "
        "does."
    )


def test_an_array_that_claims_more_than_there_is_is_named(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**13, 8, 8)})
    zipped(tmp_path / "own.npz", {f"{name}.npy": header.getvalue() for name in images()})
    text = refusal(f"mnist:{tmp_path}/own.npz")
    assert text.startswith("own.npz: expected x_train as an array of numbers, got a damaged one (")


# --- permissions and names ---


@pytest.mark.parametrize("prefix", ["mnist", "text"])
def test_a_file_that_may_not_be_read_is_named(open_folder, privileges, prefix):
    path = open_folder / "own"
    path.write_text("a b c " * 4000)
    path.chmod(0)
    privileges.drop()
    assert refusal(f"{prefix}:{path}") == (
        f"{path}: expected a file or folder that can be read, got Permission denied: change its permissions."
    )


def test_a_class_that_may_not_be_listed_is_named(open_folder, privileges):
    painted(open_folder / "own")
    (open_folder / "own" / "dog").chmod(0)
    privileges.drop()
    assert refusal(f"folder:{open_folder}/own") == (
        f"{open_folder}/own/dog: expected a file or folder that can be read, got Permission denied: change its "
        "permissions."
    )


def test_images_that_may_not_be_read_are_named(open_folder, privileges):
    painted(open_folder / "own")
    for index in (2, 5):
        (open_folder / "own" / "dog" / f"00{index}.png").chmod(0)
    privileges.drop()
    assert refusal(f"folder:{open_folder}/own") == (
        f"folder:{open_folder}/own: expected images, and could not read 2 files as such: dog/002.png (Permission "
        "denied), dog/005.png (Permission denied): replace or remove these files."
    )


@pytest.mark.parametrize("name", ["a" * 3000, "a\0b", "~nobody-of-this-name/x"])
def test_a_path_that_cannot_be_is_missing(name):
    assert refusal(f"mnist:{name}") == (
        f"--data mnist:{name}: there is no file {name}. Name an .npz with x_train, y_train, x_test, y_test."
    )


@pytest.mark.skipif(os.name == "nt", reason="file names are text there")
def test_names_that_are_not_utf_8_go_in(tmp_path):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/own\xff"))
    painted(odd, classes=("cat\udcff", "dog"))
    os.replace(odd / "dog" / "000.png", odd / "dog" / "\udcfe.png")
    assert loaded(f"folder:{odd}").classes == 2


# --- folders of images ---


def test_all_broken_images_are_named_at_once(tmp_path):
    painted(tmp_path, count=30)
    for index in range(14):
        (tmp_path / "dog" / f"{index:03}.png").write_text("hello")
    shown = ", ".join(f"{Path('dog', f'{index:03}.png')} (UnidentifiedImageError)" for index in range(10))
    assert refusal(f"folder:{tmp_path}") == (
        f"folder:{tmp_path}: expected images, and could not read 14 files as such: {shown}, and 4 more: replace or "
        "remove these files."
    )


def test_a_folder_of_broken_images_only_is_refused(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for index in range(20):
            (tmp_path / name / f"{index}.jpg").write_bytes(b"\xff\xd8\xff")
    assert "could not read 40 files as such" in refusal(f"folder:{tmp_path}")


@pytest.mark.parametrize("damage", ["cut", "changed", "orientation"])
def test_damaged_metadata_do_not_matter_where_the_pixels_are_fine(tmp_path, damage):
    image = pytest.importorskip("PIL.Image")
    exif = image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "description" * 20
    raw = exif.tobytes()
    if damage == "cut":
        raw = raw[:20]
    elif damage == "changed":
        raw = raw[:14] + b"\xff" * 40 + raw[54:]
    else:
        exif[0x0112] = 77
        raw = exif.tobytes()
    image.new("L", (20, 10), 9).save(tmp_path / "a.jpg", exif=raw)
    x_nhwc = folders._images(tmp_path, [tmp_path / "a.jpg"])
    assert x_nhwc.min() == x_nhwc.max() == 9


def test_jpegs_of_any_suffix_go_in(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for label, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        for index in range(20):
            image.new("L", (9, 8), 90 * label + index).save(tmp_path / name / f"{index}.JFIF", "jpeg")
    assert loaded(f"folder:{tmp_path}").classes == 2


def test_what_archivers_and_desktops_add_is_no_class(tmp_path):
    painted(tmp_path)
    for name in ("__MACOSX", "@eaDir", ".ipynb_checkpoints"):
        painted(tmp_path / name, count=1)
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "cat" / ".DS_Store").touch()
    (tmp_path / "cat" / "._000.png").touch()
    (tmp_path / "cat" / "Thumbs.db").touch()
    painted(tmp_path / "dog" / "@eaDir", count=1)
    task = loaded(f"folder:{tmp_path}")
    assert task.classes == 2
    assert task.description.startswith(f"{tmp_path.name}: 48 images of 2 classes")


def test_a_folder_around_the_classes_is_told_what_to_name(tmp_path):
    painted(tmp_path / "own")  # as an archive is unpacked
    painted(tmp_path / "__MACOSX" / "own", count=1)
    assert refusal(f"folder:{tmp_path}") == (
        f"folder:{tmp_path}: expected a folder for each class, two or more, got 1, whose folders hold images: name "
        f"{tmp_path / 'own'}."
    )


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links_that_lead_nowhere_are_named(tmp_path):
    painted(tmp_path)
    (tmp_path / "dog" / "link.png").symlink_to(tmp_path / "gone.png")
    assert refusal(f"folder:{tmp_path}") == (
        f"folder:{tmp_path}: expected an image in dog/link.png, and could not read it as one (No such file or "
        "directory): replace or remove the file."
    )


def _heic(folder):
    for file in list((folder / "dog").iterdir()):
        file.rename(file.with_suffix(".HEIC"))


def _some_heic(folder):
    for index in range(3):
        (folder / "dog" / f"{index:03}.png").rename(folder / "dog" / f"{index:03}.heic")


def _without_suffix(folder):
    for file in list((folder / "dog").iterdir()):
        file.rename(file.with_suffix(""))


def _empty_class(folder):
    (folder / "ant").mkdir()
    (folder / "ant" / ".DS_Store").touch()


def _text_only(folder):
    (folder / "ant").mkdir()
    (folder / "ant" / "notes.txt").touch()


def _deeper_too(folder):
    painted(folder / "dog", classes=("puppies",))


def _deeper_heic_too(folder):
    (folder / "dog" / "puppies" / "new").mkdir(parents=True)
    (folder / "dog" / "puppies" / "new" / "1.heic").touch()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_heic, "got 24 files .heic in dog: convert them, to .png for example, or remove them."),
        (_some_heic, "got 3 files .heic in dog beside 21 images: convert them, to .png for example, or remove them."),
        (_without_suffix, "got 24 files without suffix in dog: name them by their format, as 1.png, or remove them."),
        (_empty_class, "got an empty folder ant: put the images of that class into it, or remove it."),
        (_text_only, "got 1 file .txt in ant: convert them, to .png for example, or remove them."),
        (
            _deeper_too,
            "got some in dog and others in dog/puppies, which would be left out: put all images of a class into one "
            "folder.",
        ),
        (
            _deeper_heic_too,
            "got some in dog and others in dog/puppies, which would be left out: put all images of a class into one "
            "folder.",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_a_class_holds_besides_images_is_named(tmp_path, change, text):
    painted(tmp_path)
    change(tmp_path)
    assert refusal(f"folder:{tmp_path}") == f"folder:{tmp_path}: {IN_EACH}, {text}"


def test_images_beside_the_classes_are_counted(tmp_path):
    painted(tmp_path)
    shutil.copy(tmp_path / "dog" / "001.png", tmp_path / "preview.png")
    assert loaded(f"folder:{tmp_path}").description.endswith("; left out: 1 beside the classes' folders")


# --- sequences ---


def test_two_data_sets_are_not_joined(tmp_path):
    written(tmp_path)
    (tmp_path / "Made_TEST.ts").rename(tmp_path / "Other_TEST.ts")
    assert refusal(f"vowels:{tmp_path}") == (
        f"vowels:{tmp_path}: expected the two files of one data set, got Made_TRAIN.ts and Other_TEST.ts: put each "
        "data set into a folder of its own, or give both files one name if they belong together."
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
def test_sequences_in_other_encodings_are_the_same(tmp_path, encoding):
    plain = loaded(written(tmp_path))
    text = HEADER.replace("made up", "fait à Nîmes") + "".join(cases(50))
    (tmp_path / "Made_TRAIN.ts").write_bytes(text.encode(encoding))
    assert torch.equal(loaded(f"vowels:{tmp_path}").train.x_ntf, plain.train.x_ntf)


def test_classes_whose_bytes_differ_stay_apart(tmp_path):
    text = HEADER + "".join(cases(50)).replace(":2\n", ":caf\xe9\n").replace(":10\n", ":caf\xe8\n")
    for part in ("TRAIN", "TEST"):
        (tmp_path / f"Made_{part}.ts").write_bytes(text.encode("latin-1"))
    assert loaded(f"vowels:{tmp_path}").classes == 2


# --- text ---

CHINESE = "深度神经网络在训练过程中，随着网络层数的加深，输入数据的分布发生显著变化。这种现象称为内部协变量偏移。\n"
TEXTS = {
    "GB18030": CHINESE,
    "BIG5": "這是一個用來測試的中文文章，我們來看看它能不能被認出來。",
    "SHIFT_JIS": "これは日本語の文章です。今日は天気がいいので、散歩に行きました。",
    "EUC-JP": "これは日本語の文章です。今日は天気がいいので、散歩に行きました。",
    "EUC-KR": "이것은 한국어 문장입니다. 오늘은 날씨가 좋아서 산책을 했습니다. ",
    "WINDOWS-1251": "Это русский текст, который нужен для проверки кодировки.\n",
    "KOI8-R": "Это русский текст, который нужен для проверки кодировки.\n",
    "WINDOWS-1252": "Le café était fermé, à côté de la forêt où naît l'été.\n",
    "UTF-16LE": "これは日本語の文章です。今日は天気がいいので、散歩に行きました。",
}


@pytest.mark.parametrize("encoding", TEXTS)
def test_another_encoding_is_named(tmp_path, encoding):
    raw = (TEXTS[encoding] * 400).encode(encoding)
    (tmp_path / "own.txt").write_bytes(raw)
    text = refusal(f"text:{tmp_path}/own.txt")
    assert re.match(r"own\.txt: expected a text in UTF-8, got other bytes at \d+ \(line 1\): ", text)
    assert text.endswith(f": it is probably {encoding}; convert it, as iconv -f {encoding} -t UTF-8 does.")


def test_a_late_byte_of_another_encoding_is_named_with_its_line(tmp_path):
    (tmp_path / "own.txt").write_bytes(b"plain words\n" * 5000 + "déjà vu\n".encode("latin-1"))
    assert refusal(f"text:{tmp_path}/own.txt") == (
        "own.txt: expected a text in UTF-8, got other bytes at 60001 (line 5001): it is probably WINDOWS-1252; convert "
        "it, as iconv -f WINDOWS-1252 -t UTF-8 does."
    )


@pytest.mark.parametrize(
    "words", ["Plain English, line by line.\n", CHINESE, TEXTS["KOI8-R"]], ids=["English", "Chinese", "Russian"]
)
@pytest.mark.parametrize(
    ("encoding", "word"),
    [
        ("utf-8-sig", ""),
        ("utf-16", ", read as UTF-16-LE"),
        ("utf-16-le", ", read as UTF-16-LE"),
        ("utf-16-be", ", read as UTF-16-BE"),
        ("utf-32", ", read as UTF-32-LE"),
        ("utf-32-be", ", read as UTF-32-BE"),
    ],
)
def test_a_text_is_the_same_in_every_unicode_encoding(tmp_path, words, encoding, word):
    text = words * 500
    (tmp_path / "own.txt").write_bytes(text.replace("\n", "\r\n").encode(encoding))
    task = load_text(source(f"text:{tmp_path}/own.txt"))
    assert task.description == f"own.txt, character by character{word}"
    tokens = torch.cat([task.train_n, task.validation_n, task.test_n]).tolist()
    assert "".join(task.vocabulary[token] for token in tokens) == text


def test_a_byte_order_mark_is_no_character():
    from gammabeta.lab.text.characters import task

    assert task("\ufeffab cd\ufeff" * 3000, name="own", description="").vocabulary[:-1] == " abcd"
    assert decode(b"\xef\xbb\xbfa\xef\xbb\xbfb", "own") == ("ab", "utf-8")


def test_zero_bytes_are_no_text(tmp_path):
    (tmp_path / "own.txt").write_bytes(b"words " * 3000 + b"\0")
    assert refusal(f"text:{tmp_path}/own.txt") == (
        "own.txt: expected a text in UTF-8, got a zero byte at 18000: it is another kind of file, or damaged; name a "
        "text."
    )


def test_a_script_of_many_characters_keeps_nearly_all_of_them(tmp_path):
    rng = np.random.default_rng(0)
    frequent = [chr(0x4E00 + int(rank)) for rank in rng.zipf(1.3, 30_000) if rank < 5000]
    (tmp_path / "own.txt").write_text("".join(frequent), encoding="utf-8")
    task = load_text(source(f"text:{tmp_path}/own.txt"))
    tokens = torch.cat([task.train_n, task.validation_n, task.test_n])
    other = float((tokens == len(task.vocabulary) - 1).double().mean())
    assert len(task.vocabulary) > 97
    assert 0 < other <= 0.02
    assert (
        task.description
        == f"own.txt, character by character; {100 * other:.1f} % of its characters are rare and count as one"
    )


# --- pixels and classes ---


def floats(**changed):
    rng = np.random.default_rng(0)
    whole = images()
    whole["x_train"], whole["x_test"] = rng.random((60, 8, 8)), rng.random((30, 8, 8))
    return {**whole, **changed}


def saved(folder, arrays):
    np.savez(folder / "own.npz", **arrays)
    return f"mnist:{folder}/own.npz"


@pytest.mark.parametrize("value", [1e300, -1e300, 1e160, 3.4e38, 1e25])
def test_a_few_huge_pixels_are_refused(tmp_path, value):
    arrays = floats()
    arrays["x_train"][::2, 3, 3] = value
    assert refusal(saved(tmp_path, arrays)) == (
        f"mnist: expected pixels of similar size in x_train, got some of up to {abs(value):.3g}, beside which the "
        "others are all the same: replace them where they mark what is missing, or leave them out."
    )


@pytest.mark.parametrize("value", [1e300, -1e300, 3.4e38, 1e15])
def test_a_huge_pixel_of_the_test_part_is_refused(tmp_path, value):
    arrays = floats()
    arrays["x_test"][7, 3, 3] = value
    text = refusal(saved(tmp_path, arrays))
    assert text.startswith("mnist: expected pixels of x_train's size everywhere, got one that is ")
    assert "e+" in text


@pytest.mark.parametrize("scale", [1e300, 1e-300, 1e30])
def test_pixels_of_any_unit_are_standardized(tmp_path, scale):
    scaled = floats()
    for part in ("x_train", "x_test"):
        scaled[part] *= scale
    own = loaded(saved(tmp_path, scaled))
    plain = loaded(saved(tmp_path, floats()))
    torch.testing.assert_close(own.train.x_nchw, plain.train.x_nchw, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(own.test.x_nchw, plain.test.x_nchw, rtol=1e-5, atol=1e-5)


def test_sparse_pixels_with_noise_of_rounding_go_in(tmp_path):
    arrays = floats()
    for part in ("x_train", "x_test"):
        arrays[part] = np.where(arrays[part] > 0.95, 255.0, 1e-14 * arrays[part])
    assert loaded(saved(tmp_path, arrays)).shape == (1, 8, 8)


def test_a_huge_value_of_a_sequence_is_refused(tmp_path):
    text = HEADER + "".join(cases(50))
    first, rest = text.split("@data\n")[0] + "@data\n", text.split("@data\n")[1]
    lines = rest.splitlines(keepends=True)
    lines[0] = "1e300," + lines[0].partition(",")[2]
    data = written(tmp_path, train=first + "".join(lines))
    assert refusal(data).startswith(f"{data}: expected values of similar size in x_train, got some of up to 1e+300")


@pytest.mark.parametrize(
    ("y_train", "y_test", "part"),
    [
        (np.arange(30_000) % 300 == 0, np.arange(100) % 2, "2500 that the study takes from x_train, got 9 of class 1"),
        (np.arange(30_000) % 2, np.arange(100) % 25 == 0, "100 that the study takes from x_test, got 4 of class 1"),
        (np.arange(30_000) % 2, np.zeros(100), "100 that the study takes from x_test, got 0 of class 1"),
    ],
)
def test_a_class_that_is_hardly_drawn_is_refused(tmp_path, y_train, y_test, part):
    rng = np.random.default_rng(0)
    arrays = {"y_train": y_train.astype(np.int64), "y_test": y_test.astype(np.int64)}
    for name in ("train", "test"):
        arrays[f"x_{name}"] = rng.integers(0, 256, (len(arrays[f"y_{name}"]), 8, 8), dtype=np.uint8)
    fewest = 10 if "x_train" in part else 5
    assert refusal(saved(tmp_path, arrays)) == (
        f"own.npz: expected {fewest} images of each class or more among the {part}: bring more of it, or leave the "
        "class out."
    )


# --- what a function returns ---


@pytest.mark.parametrize(
    ("returned", "text"),
    [
        (
            "{**images, 'x_train': np.ma.masked_greater(images['x_train'], 250)}",
            r"expected x_train as a numpy array or a tensor without gaps, got one with \d+ masked values: replace "
            r"them, as x_train\.filled\(0\) does\.",
        ),
        (
            "{**images, 'x_train': torch.eye(60).to_sparse()}",
            r"expected x_train as a numpy array or a tensor, got a tensor that numpy cannot hold \(TypeError: .*\): "
            r"return a dense one on a CPU\.",
        ),
        (
            "{**images, 'x_train': torch.ones(60, 8, 8, device='meta')}",
            r"expected x_train as a numpy array or a tensor, got a tensor that numpy cannot hold \(.*\): "
            r"return a dense one on a CPU\.",
        ),
        (
            "sys.exit(3)",
            r"data calls sys.exit\(3\) \(own\.py, line \d+\): leave that out where it is called from here\.",
        ),
    ],
)
def test_arrays_that_cannot_be_taken_are_named(tmp_path, returned, text):
    target = function(tmp_path, returned.replace("sys.exit", "__import__('sys').exit"))
    assert re.fullmatch(re.escape(f"--data {target}: ") + text, refusal(target))


# --- damage of any sort ---


def damaged(raw, rng):
    """Cut, change, repeat or remove some of the bytes."""
    raw = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(raw) + 1)
        some = rng.choice((1, 2, 8, 200))
        kind = rng.choice(("cut", "change", "zero", "remove", "repeat", "insert"))
        if kind == "cut":
            del raw[at:]
        elif kind == "change":
            raw[at : at + some] = rng.randbytes(len(raw[at : at + some]))
        elif kind == "zero":
            raw[at : at + some] = bytes(len(raw[at : at + some]))
        elif kind == "remove":
            del raw[at : at + some]
        elif kind == "repeat":
            raw[at:at] = raw[at : at + some]
        else:
            raw[at:at] = rng.randbytes(some)
    return bytes(raw)


def _an_npz(folder):
    np.savez_compressed(folder / "own.npz", **images())
    return folder / "own.npz", f"cifar10:{folder}/own.npz"


def _plain_npz(folder):
    np.savez(folder / "own.npz", **images())
    return folder / "own.npz", f"mnist:{folder}/own.npz"


def _a_ts(folder):
    return folder / "Made_TRAIN.ts", written(folder)


def _a_png(folder):
    painted(folder, count=20, mode="RGB")
    return folder / "dog" / "003.png", f"folder:{folder}"


def _a_jpeg(folder):
    image = pytest.importorskip("PIL.Image")
    painted(folder, count=20)
    (folder / "dog" / "003.png").unlink()
    exif = image.Exif()
    exif[0x0112] = 6
    image.new("RGB", (20, 10), (1, 2, 3)).save(folder / "dog" / "003.jpg", exif=exif)
    return folder / "dog" / "003.jpg", f"folder:{folder}"


def _a_text(folder):
    (folder / "own.txt").write_text(CHINESE * 300, encoding="utf-8")
    return folder / "own.txt", f"text:{folder}/own.txt"


@pytest.mark.parametrize("make", [_an_npz, _plain_npz, _a_ts, _a_png, _a_jpeg, _a_text], ids=lambda make: make.__name__)
def test_damaged_files_go_in_or_are_refused_in_one_sentence(tmp_path, make):
    file, data = make(tmp_path)
    whole = file.read_bytes()
    refused = []
    for seed in range(60):
        file.write_bytes(damaged(whole, random.Random(seed)))
        try:
            loaded(data)
        except TaskError as error:
            refused.append(str(error))
    assert refused
    assert not [text for text in refused if "\n" in text]

"""Data that a user names or brings: images, sequences of variable length, and what the user's function returns."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gammabeta.lab import sources
from gammabeta.lab.images.training import exact_statistics
from gammabeta.lab.sources import kind, load, load_sequences, load_text, source
from gammabeta.lab.task import TaskError

DATA = Path(__file__).parents[3] / "shared" / "data"


def exactly(text):
    return f"^{re.escape(text)}$"


def images(**changed):
    rng = np.random.default_rng(0)
    good = {
        "x_train": rng.integers(0, 256, (60, 8, 9, 3), dtype=np.uint8),
        "y_train": np.arange(60) % 3,
        "x_test": rng.integers(0, 256, (30, 8, 9, 3), dtype=np.uint8),
        "y_test": np.arange(30) % 3,
    }
    return {**good, **changed}


def loaded(data):
    named = source(data)
    return {"images": load, "sequences": load_sequences, "text": load_text}[kind(named)](named)


# --- splits ---


def pixels(part):
    """Return what tells the images of a part from all others, whatever their scale."""
    return {tuple(image.flatten().double().argsort(stable=True).tolist()[:40]) for image in part.x_nchw}


def test_a_split_draws_all_parts_of_the_digits_anew_and_by_its_number_alone():
    whole, one, again, other = (
        load({**source("digits"), **split}) for split in ({}, *({"split": n} for n in (1, 1, 2)))
    )
    assert torch.equal(one.test.x_nchw, again.test.x_nchw)
    for part in ("train", "validation", "test"):
        sizes = {len(getattr(task, part)) for task in (whole, one, other)}
        assert len(sizes) == 1
        shares = [torch.bincount(getattr(task, part).y_n) for task in (whole, one, other)]
        assert all(int((share - shares[0]).abs().max()) <= 1 for share in shares)
        assert not torch.equal(getattr(one, part).y_n, getattr(other, part).y_n)
    assert not one.keeps_test
    moved = len(pixels(one.test) & pixels(other.test)) / len(one.test)
    assert moved == pytest.approx(400 / 1797, abs=0.08)  # as many as two independent draws share
    assert float(one.train.x_nchw.mean()) == pytest.approx(0, abs=1e-6)


def test_a_test_set_of_its_own_is_kept_and_the_others_are_drawn_anew(tmp_path):
    np.savez(tmp_path / "own.npz", **images())
    named = source(f"cifar10:{tmp_path / 'own.npz'}")
    one, other = (load({**named, "split": number}) for number in (1, 2))
    assert one.keeps_test
    assert torch.equal(one.test.y_n, other.test.y_n)
    assert not torch.equal(one.validation.y_n, other.validation.y_n) or not torch.equal(
        one.validation.x_nchw, other.validation.x_nchw
    )
    assert (len(one.train), len(one.validation)) == (len(other.train), len(other.validation)) == (48, 12)


def sorted_by_class(folder, form):
    """Return the source of 400 samples of two classes, and of a test part of its own, one class after the other."""
    order = {"y_train": np.arange(400) // 200, "y_test": np.arange(200) // 100}
    rng = np.random.default_rng(0)
    if form in ("mnist", "cifar10"):
        shapes = {"x_train": (400, 8, 9, 3), "x_test": (200, 8, 9, 3)}
        np.savez(folder / "own.npz", **order, **{name: rng.random(shape) for name, shape in shapes.items()})
        return f"{form}:{folder / 'own.npz'}"
    if form == "folder":
        return f"folder:{painted(folder / 'own', count=200, size=(8, 8), mode='RGB')}"
    if form == "vowels":
        lines = sorted(cases(400), key=lambda line: int(line.rsplit(":", 1)[1]))
        return written(folder, HEADER + "".join(lines), HEADER + "".join(lines[::2]))
    x_train, x_test = {"images": ("(400, 8, 8)", "(200, 8, 8)"), "sequences": ("(400, 7, 2)", "(200, 7, 2)")}[form]
    lengths = "'lengths_train': np.full(400, 7), 'lengths_test': np.full(200, 7)" if form == "sequences" else ""
    labels = "'y_train': np.arange(400) // 200, 'y_test': np.arange(200) // 100"
    return function(
        folder, f"{{'x_train': np.random.rand{x_train}, 'x_test': np.random.rand{x_test}, {labels}, {lengths}}}"
    )


@pytest.mark.parametrize("form", ["mnist", "cifar10", "folder", "vowels", "images", "sequences"])
def test_the_first_samples_of_a_part_are_a_sample_of_it_where_the_file_is_sorted_by_class(tmp_path, form):
    task = loaded(sorted_by_class(tmp_path, form))
    for part in (task.train, task.validation, task.test):
        first = part.y_n[: len(part) // 2].double()
        spread = (0.25 / len(first)) ** 0.5
        assert float(part.y_n.double().mean()) == pytest.approx(0.5, abs=0.01)
        assert float(first.mean()) == pytest.approx(0.5, abs=4 * spread)


def test_statistics_of_the_first_images_are_those_of_all_where_the_file_is_sorted_by_class(tmp_path):
    """By a fifth of the images, in file order those of the first class alone, the shades' mean was off by 0.9."""
    y_n = np.arange(2000) // 400
    x = np.random.default_rng(0).normal(y_n[:, None, None] * 50.0, 20.0, (2000, 8, 8))
    np.savez(tmp_path / "own.npz", x_train=x, y_train=y_n, x_test=x[::2], y_test=y_n[::2])
    train = load(source(f"mnist:{tmp_path / 'own.npz'}")).train
    model = nn.Sequential(nn.BatchNorm2d(1))
    with exact_statistics(model, train.x_nchw[: len(train) // 5]):
        assert float(model(train.x_nchw).mean()) == pytest.approx(0, abs=0.2)


def test_train_limits_all_parts_alike_or_takes_the_whole(tmp_path):
    np.savez(tmp_path / "own.npz", **images())
    data = f"cifar10:{tmp_path / 'own.npz'}"
    sizes = {}
    for train in (None, 36, "30", "all"):
        task = load({**source(data, train), "split": 3})
        sizes[train] = len(task.train), len(task.validation), len(task.test)
    assert sizes == {None: (48, 12, 30), 36: (36, 9, 18), "30": (30, 8, 15), "all": (48, 12, 30)}
    assert "36 training and 9 tuning images of 60, 18 test images of 30" in load(source(data, 36)).description


@pytest.mark.parametrize(
    ("data", "train", "what"),
    [
        (
            "digits",
            100,
            "--train 100: expected data of separate samples (mnist:FILE, cifar10:FILE, npz:FILE, folder:DIR, "
            "vowels:DIR, or a function that returns arrays), got digits: leave --train out.",
        ),
        ("cifar10:own.npz", 9, "--train 9: expected a number of 10 or more, or all, got 9."),
        ("cifar10:own.npz", "half", "--train half: expected a number of 10 or more, or all, got half."),
    ],
)  # fmt: skip
def test_what_train_cannot_limit_is_said(tmp_path, monkeypatch, data, train, what):
    monkeypatch.chdir(tmp_path)
    np.savez("own.npz", **images())
    with pytest.raises(TaskError, match=exactly(what)):
        source(data, train)


def test_a_folder_has_no_test_set_of_its_own(tmp_path):
    painted(tmp_path / "own")
    named = source(f"folder:{tmp_path / 'own'}")
    one, other = (load({**named, "split": number}) for number in (1, 2))
    assert not one.keeps_test
    assert not torch.equal(one.test.x_nchw, other.test.x_nchw)
    assert len(one.test) == len(other.test)


# --- cifar10 ---


def test_cifar10_goes_in_with_labels_as_keras_has_them(tmp_path):
    whole = images()
    np.savez(tmp_path / "c.npz", **whole)
    columns = {name: whole[name][:, None] for name in ("y_train", "y_test")}
    np.savez(tmp_path / "keras.npz", **{**whole, **columns})
    plain, keras = (load(source(f"cifar10:{tmp_path / name}.npz")) for name in ("c", "keras"))
    assert (plain.name, plain.shape, plain.classes) == ("cifar10", (3, 8, 9), 3)
    assert torch.equal(plain.train.x_nchw, keras.train.x_nchw)
    assert torch.equal(plain.test.y_n, keras.test.y_n)
    # With channels moved to the front and values standardized, the images are those of the file.
    given = whole["x_test"].astype(np.float64)
    own = plain.test.x_nchw.permute(0, 2, 3, 1).double().numpy()
    given, own = (x[np.argsort(x[..., 0].mean(axis=(1, 2)))] for x in (given, own))  # the parts are in random order
    for channel in range(3):
        assert np.corrcoef(given[..., channel].ravel(), own[..., channel].ravel())[0, 1] == pytest.approx(1, abs=1e-6)


# --- folder ---


def painted(folder, count=24, classes=("cat", "dog"), size=(20, 10), mode="L"):
    """Write images by class, each with its own shade."""
    image = pytest.importorskip("PIL.Image")
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            shade = (label * 100 + index) if mode == "L" else (label * 100 + index, 7, index)
            picture = image.new(mode, size, shade)
            picture.putpixel((0, 0), 255 if mode == "L" else (255, 255, 255))
            picture.save(folder / name / f"{index:03}.png")
    return folder


def test_a_folder_of_images_goes_in(tmp_path):
    (painted(tmp_path / "own") / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "own" / ".hidden").mkdir()
    named = source(f"folder:{tmp_path / 'own'}")
    assert kind(named) == "images"
    task = load(named)
    assert (task.name, task.classes, task.shape) == ("own", 2, (1, 10, 20))
    assert task.description == "own: 48 images of 2 classes, 10 × 20, grey, in stratified parts"
    parts = (task.train, task.validation, task.test)
    assert [len(part) for part in parts] == [27, 7, 14]
    for part in parts:
        cats, dogs = torch.bincount(part.y_n).tolist()
        assert abs(cats - dogs) <= 1
    # dog is the brighter class, and no image is in two parts.
    shades = torch.cat([part.x_nchw[:, 0, 5, 5] for part in parts])
    labels = torch.cat([part.y_n for part in parts])
    assert shades[labels == 1].min() > shades[labels == 0].max()
    assert len(shades.unique()) == 48


def test_images_of_many_sizes_and_colours_get_one(tmp_path):
    painted(tmp_path / "own", classes=("a",), size=(100, 50), mode="RGB")
    painted(tmp_path / "own", classes=("b",), size=(120, 60))
    task = load(source(f"folder:{tmp_path / 'own'}"))
    assert task.shape == (3, 16, 32)


def test_sixteen_bits_and_turned_cameras(tmp_path):
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(20):
            plane = rng.integers(0, 65536, (30, 16), dtype=np.uint16)
            image.fromarray(plane).save(tmp_path / name / f"{index}.png")
    from gammabeta.lab.images import folder

    assert load(source(f"folder:{tmp_path}")).shape == (1, 30, 16)
    x_nhwc = folder._images(tmp_path, [tmp_path / "a" / "0.png"])
    assert 200 < x_nhwc.max() <= 255
    turned = image.Exif()
    turned[0x0112] = 6
    image.fromarray(rng.integers(0, 256, (16, 30), dtype=np.uint8)).save(tmp_path / "a" / "0.jpg", exif=turned)
    assert folder._images(tmp_path, [tmp_path / "a" / "0.jpg"]).shape == (1, 30, 16, 1)


def test_train_limits_a_folder_and_what_is_not_taken_is_not_read(tmp_path, monkeypatch):
    from gammabeta.lab.images import folder

    painted(tmp_path / "own", count=36)
    read = []
    images_of = folder._images
    monkeypatch.setattr(folder, "_images", lambda path, files: read.append(len(files)) or images_of(path, files))
    sizes = {}
    for train in (24, "all"):
        task = load({**source(f"folder:{tmp_path / 'own'}", train), "split": 3})
        sizes[train] = len(task.train), len(task.validation), len(task.test)
        assert abs(2 * int(task.train.y_n.sum()) - len(task.train)) <= 1
    assert sizes == {24: (24, 6, 12), "all": (41, 10, 21)}
    assert read == [42, 72]
    assert task.available == {"train": 72, "validation": 72, "test": 72}


def test_a_folder_s_images_that_are_not_taken_may_be_broken(tmp_path):
    from gammabeta.lab.images.folder import chosen

    own = painted(tmp_path / "own", count=36)
    taken = chosen(own, 24)[1]
    left = next(file for file in sorted(own.rglob("*.png")) if file not in taken)
    before = source(f"folder:{own}", 24)
    left.write_bytes(b"no image")
    assert source(f"folder:{own}", 24) == before
    assert len(load(before).train) == 24
    text = (
        f"folder:{own}: expected 20 images of each class or more among the 35 that the study takes, got 17 in cat: "
        "take more with --train, or name a folder with fewer classes, or with classes of more similar sizes."
    )
    with pytest.raises(TaskError, match=exactly(text)):
        source(f"folder:{own}", 20)


def test_a_folder_that_changes_is_another_task(tmp_path):
    painted(tmp_path / "own")
    before = source(f"folder:{tmp_path / 'own'}")
    os.replace(tmp_path / "own" / "cat" / "000.png", tmp_path / "own" / "dog" / "100.png")
    after = source(f"folder:{tmp_path / 'own'}")
    assert before["fingerprint"] != after["fingerprint"]
    text = f"--data folder:{tmp_path / 'own'}: the folder changed while the study ran. Run it again."
    with pytest.raises(TaskError, match=exactly(text)):
        load(before)


IN_EACH = (
    "expected images (.avif, .bmp, .gif, .jfif, .jpe, .jpeg, .jpg, .pbm, .pgm, .png, .ppm, .tif, .tiff, .webp) in each "
    "class's folder itself"
)


def _empty(folder):
    pass


def _one_class(folder):
    painted(folder, classes=("cat",))


def _nested(folder):
    painted(folder / "train")
    painted(folder / "test")


def _few(folder):
    painted(folder)
    for index in range(10):
        (folder / "dog" / f"{index:03}.png").unlink()


def _broken(folder):
    painted(folder)
    (folder / "dog" / "003.png").write_text("hello")


def _torn(folder):
    painted(folder, size=(64, 64))
    whole = (folder / "dog" / "003.png").read_bytes()
    (folder / "dog" / "003.png").write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (
            _empty,
            "expected a folder for each class, two or more, got 0: put the images into folders named by their class.",
        ),
        (
            _one_class,
            "expected a folder for each class, two or more, got 1: put the images into folders named by their class.",
        ),
        (
            _nested,
            f"{IN_EACH}, got none in test: name the folder whose folders are the classes.",
        ),
        (
            _few,
            "expected 20 images of each class or more, got 14 in dog: add more, or remove that folder.",
        ),
        (
            _broken,
            f"expected an image in {Path('dog', '003.png')}, and could not read it as one (UnidentifiedImageError): "
            "replace or remove the file.",
        ),
        (
            _torn,
            f"expected an image in {Path('dog', '003.png')}, and could not read it as one (OSError): "
            "replace or remove the file.",
        ),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_in_one_sentence(tmp_path, made, text):
    made(tmp_path)
    with pytest.raises(TaskError, match=exactly(f"folder:{tmp_path}: {text}")):
        load(source(f"folder:{tmp_path}"))


def test_a_class_that_few_of_many_images_have_is_refused(tmp_path):
    painted(tmp_path, count=20, classes=("rare",))
    (tmp_path / "usual").mkdir()
    for index in range(4000):
        (tmp_path / "usual" / f"{index}.png").touch()
    text = (
        f"folder:{tmp_path}: expected 20 images of each class or more among the 3500 that the study takes, got 17 in "
        "rare: take more with --train, or name a folder with fewer classes, or with classes of more similar sizes."
    )
    with pytest.raises(TaskError, match=exactly(text)):
        source(f"folder:{tmp_path}")


def test_what_lies_nowhere_is_refused():
    text = "--data folder:no/where: there is no folder no/where. Name a folder with a folder for each class."
    with pytest.raises(TaskError, match=exactly(text)):
        source("folder:no/where")
    text = "--data vowels:no/where: there is no folder no/where. Name a folder with *_TRAIN.ts and *_TEST.ts."
    with pytest.raises(TaskError, match=exactly(text)):
        source("vowels:no/where")
    text = "--data cifar10:no.npz: there is no file no.npz. Name an .npz with x_train, y_train, x_test, y_test."
    with pytest.raises(TaskError, match=exactly(text)):
        source("cifar10:no.npz")


# --- vowels ---

HEADER = "# made up\n@problemName Made\n@timeStamps false\n@classLabel true 2 10\n@data\n"


def cases(count, dimensions=2):
    """Make lines whose lengths and classes alternate: 3 to 5 steps, classes 2 and 10."""
    rng = np.random.default_rng(0)
    lines = []
    for index in range(count):
        values = rng.normal(5, 2, (dimensions, 3 + index % 3))
        written = ":".join(",".join(f"{value:.4f}" for value in dimension) for dimension in values)
        lines.append(f"{written}:{(2, 10)[index % 2]}\n")
    return lines


def written(folder, train=None, test=None):
    (folder / "Made_TRAIN.ts").write_text(HEADER + "".join(cases(50)) if train is None else train)
    (folder / "Made_TEST.ts").write_text(HEADER + "".join(cases(20)) if test is None else test)
    return f"vowels:{folder}"


def test_sequences_of_the_archive_go_in(tmp_path):
    named = source(written(tmp_path))
    assert kind(named) == "sequences"
    task = load_sequences(named)
    assert (task.name, task.features, task.classes) == ("Made", 2, 2)
    assert task.description == (
        "Made: sequences of 3 to 5 steps, 2 features, 2 classes: 40 training and 10 tuning sequences of 50, 20 test "
        "sequences of 20"
    )
    assert [len(part) for part in (task.train, task.validation, task.test)] == [40, 10, 20]
    # Classes are in numeric order: 2 is 0 and 10 is 1, alternating as the lines do.
    found = sorted(zip(task.test.y_n.tolist(), task.test.lengths_n.tolist(), strict=True))
    assert found == sorted((index % 2, 3 + index % 3) for index in range(20))
    real_nt = torch.arange(5) < task.train.lengths_n[:, None]
    values_vf = task.train.x_ntf[real_nt].double()
    assert values_vf.mean(dim=0).abs().max() < 1e-6
    assert (values_vf.std(dim=0, correction=0) - 1).abs().max() < 1e-6
    for part in (task.train, task.validation, task.test):
        padding_nt = torch.arange(part.x_ntf.shape[1]) >= part.lengths_n[:, None]
        assert padding_nt.any()
        assert not part.x_ntf[padding_nt].any()
    # The first test line's first dimension is one of them, in the file's own order of steps.
    given = np.array([float(value) for value in cases(1)[0].split(":")[0].split(",")])
    of_three = task.test.x_ntf[task.test.lengths_n == 3][:, :3, 0].double().numpy()
    matched = [np.corrcoef(given, own)[0, 1] == pytest.approx(1, abs=1e-6) for own in of_three]
    assert matched.count(True) == 1


@pytest.mark.skipif(not (DATA / "JapaneseVowels_TRAIN.ts").exists(), reason="JapaneseVowels does not lie beside it")
def test_japanese_vowels_go_in():
    task = load_sequences(source(f"vowels:{DATA}"))
    assert (task.name, task.features, task.classes) == ("JapaneseVowels", 12, 9)
    assert [len(part) for part in (task.train, task.validation, task.test)] == [216, 54, 370]
    assert torch.bincount(task.validation.y_n).tolist() == [6] * 9
    assert torch.bincount(task.test.y_n).tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]
    lengths = torch.cat([part.lengths_n for part in (task.train, task.validation, task.test)])
    assert (int(lengths.min()), int(lengths.max())) == (7, 29)


@pytest.mark.parametrize(
    ("train", "text"),
    [
        (
            HEADER.replace("@timeStamps false", "@timeStamps true"),
            "Made_TRAIN.ts: expected values without time stamps, got @timeStamps true: remove them.",
        ),
        (
            HEADER.replace("@classLabel true 2 10", "@classLabel false"),
            "Made_TRAIN.ts: expected a class in each line, got @classLabel false: choose labelled data.",
        ),
        (
            "1,2:3,4:2\n",
            "Made_TRAIN.ts: expected a line @data before the cases, got none: write it in the .ts format.",
        ),
        (HEADER, "Made_TRAIN.ts: expected cases after @data, got none: name files with data."),
        (
            HEADER + "1,2:3,4\n",
            'Made_TRAIN.ts, line 6: expected dimensions separated by ":" and a class last, got no class: write it at '
            "the end of the line.",
        ),
        (
            HEADER + "1,2:3,?:2\n",
            "Made_TRAIN.ts, line 6: expected numbers separated by \",\", got '?' in dimension 2: fill in missing "
            "values, or remove the line.",
        ),
        (
            HEADER + "1,2:3:2\n",
            "Made_TRAIN.ts, line 6: expected dimensions of one length, got 1 and 2 values: the dimensions of a case "
            "must have the same number of steps.",
        ),
        (
            HEADER + "1,2:3,4:2\n1,2:2\n",
            "Made_TRAIN.ts, line 7: expected 2 dimensions as in the first case, got 1: correct the line, or remove it.",
        ),
        (
            HEADER + "".join(cases(50)).replace(":10\n", ":2\n"),
            "Made_TEST.ts: expected the classes of Made_TRAIN.ts, got 10 too: leave out the cases of that class.",
        ),
        (
            HEADER + "".join(cases(12)),
            "vowels:{folder}: expected 10 training sequences of each class or more, got 6 of one: bring more, or leave "
            "the class out.",
        ),
        (
            HEADER + "".join(cases(50, dimensions=3)),
            "vowels:{folder}: expected one number of features, got 3 in x_train and 2 in x_test: give both the same.",
        ),
    ],
)
def test_a_ts_file_that_cannot_be_used_is_refused_in_one_sentence(tmp_path, train, text):
    with pytest.raises(TaskError, match=exactly(text.format(folder=tmp_path))):
        load_sequences(source(written(tmp_path, train)))


def test_a_folder_without_ts_files_is_refused(tmp_path):
    text = (
        f"vowels:{tmp_path}: expected one file *_TRAIN.ts, got none: name a folder with the two files of one data set."
    )
    with pytest.raises(TaskError, match=exactly(text)):
        source(f"vowels:{tmp_path}")
    written(tmp_path)
    (tmp_path / "Other_TEST.ts").touch()
    text = (
        f"vowels:{tmp_path}: expected one file *_TEST.ts, got Made_TEST.ts, Other_TEST.ts: name a folder with the two "
        "files of one data set."
    )
    with pytest.raises(TaskError, match=exactly(text)):
        source(f"vowels:{tmp_path}")


# --- a function of the user's ---

PREFACE = """
import numpy as np
import torch
rng = np.random.default_rng(0)
images = {
    "x_train": rng.integers(0, 256, (60, 8, 8), dtype=np.uint8), "y_train": np.arange(60) % 3,
    "x_test": rng.integers(0, 256, (30, 8, 8), dtype=np.uint8), "y_test": np.arange(30) % 3,
}
sequences = {
    "x_train": torch.randn(60, 7, 2, generator=torch.Generator().manual_seed(0)), "y_train": torch.arange(60) % 3,
    "lengths_train": torch.arange(60) % 7 + 1,
    "x_test": torch.randn(30, 9, 2, generator=torch.Generator().manual_seed(1)), "y_test": torch.arange(30) % 3,
    "lengths_test": torch.arange(30) % 9 + 1,
}
"""


def function(folder, returned):
    """Return the target of a function that returns the expression's value."""
    (folder / "own.py").write_text(f"{PREFACE}\ndef data():\n    return {returned}\n")
    return f"{folder / 'own.py'}:data"


def test_a_function_brings_images(tmp_path, monkeypatch):
    target = function(tmp_path, "images")
    monkeypatch.chdir(tmp_path)
    named = source("own.py:data")
    assert named["data"] == f"user's images:{target}"
    assert named == source(target)
    assert kind(named) == "images"
    task = load(named)
    assert (task.name, task.shape, task.classes) == ("data of own.py", (1, 8, 8), 3)
    assert task.description == ("data of own.py: 48 training and 12 tuning images of 60, 30 test images of 30")
    assert [len(part) for part in (task.train, task.validation, task.test)] == [48, 12, 30]


def test_a_function_brings_tensors(tmp_path):
    as_arrays = load(source(function(tmp_path, "images")))
    (tmp_path / "other").mkdir()
    tensors = "{name: torch.from_numpy(value) for name, value in images.items()}"
    as_tensors = load(source(function(tmp_path / "other", tensors)))
    assert torch.equal(as_arrays.train.x_nchw, as_tensors.train.x_nchw)
    (tmp_path / "third").mkdir()
    half = "{**images, 'x_train': torch.from_numpy(images['x_train']).bfloat16()}"
    assert load(source(function(tmp_path / "third", half))).shape == (1, 8, 8)


def test_a_function_brings_sequences_and_what_lies_in_their_padding_does_not_matter(tmp_path):
    task = load_sequences(source(function(tmp_path, "sequences")))
    assert (task.features, task.classes, task.train.x_ntf.shape[1], task.test.x_ntf.shape[1]) == (2, 3, 7, 9)
    (tmp_path / "other").mkdir()
    padded = (
        "{**sequences, 'x_train': torch.where((torch.arange(7) < sequences['lengths_train'][:, None])[:, :, None], "
        "sequences['x_train'], torch.nan)}"
    )
    other = load_sequences(source(function(tmp_path / "other", padded)))
    assert torch.equal(task.train.x_ntf, other.train.x_ntf)
    assert torch.equal(task.test.x_ntf, other.test.x_ntf)


def test_a_functions_text_is_known_as_text(tmp_path):
    named = source(function(tmp_path, "{'text': 'to be ' * 2000}"))
    assert kind(named) == "text"
    assert named["data"].startswith("user's text:")
    task = load_text(named)
    assert (task.name, task.vocabulary[:-1], len(task.train_n)) == ("data of own.py", " beot", 10_800)


def test_data_of_another_kind_is_refused(tmp_path):
    named = source(function(tmp_path, "images"))
    for other, wanted in ((load_sequences, "sequences"), (load_text, "text")):
        text = f"--data {tmp_path / 'own.py'}:data: expected {wanted}, got images: name data of that kind."
        with pytest.raises(TaskError, match=exactly(text)):
            other(named)
    text = "--data digits: expected sequences, got images: name data of that kind."
    with pytest.raises(TaskError, match=exactly(text)):
        load_sequences(source("digits"))


def test_what_a_function_returns_and_where_it_is_written_make_the_fingerprint(tmp_path):
    first = source(function(tmp_path, "images"))
    for index, returned in enumerate(["dict(images)", "{**images, 'x_test': images['x_test'][::-1]}"]):
        (tmp_path / str(index)).mkdir()
        assert source(function(tmp_path / str(index), returned))["fingerprint"] != first["fingerprint"]
    (tmp_path / "same").mkdir()
    assert source(function(tmp_path / "same", "images"))["fingerprint"] == first["fingerprint"]


def test_a_function_that_returns_something_else_each_time_is_refused(tmp_path):
    target = function(tmp_path, "{**images, 'x_train': np.random.default_rng().random((60, 8, 8))}")
    text = (
        f"--data {target}: expected the same data each time that the function is called, got others: seed what it "
        "draws, or run the study again if its file changed."
    )
    with pytest.raises(TaskError, match=exactly(text)):
        load(source(target))


def test_a_functions_seeds_are_its_own(tmp_path):
    target = function(tmp_path, "[torch.manual_seed(7), np.random.seed(7), images][2]")
    torch.manual_seed(1)
    np.random.seed(1)
    expected = torch.rand(2), np.random.rand(2)
    torch.manual_seed(1)
    np.random.seed(1)
    source(target)
    assert torch.equal(torch.rand(2), expected[0])
    assert np.array_equal(np.random.rand(2), expected[1])


FORMS = "x_train, y_train, x_test, y_test; these and lengths_train, lengths_test; or text"


@pytest.mark.parametrize(
    ("returned", "text"),
    [
        ("[1]", f"expected a dict with {FORMS}, got list: return the arrays under these names."),
        (
            "{'x_train': 1}",
            f"expected a dict with {FORMS}, got x_train: return these names and no others.",
        ),
        ("{}", f"expected a dict with {FORMS}, got nothing: return these names and no others."),
        (
            "{**images, 'y_test': [0] * 30}",
            "expected y_test as a numpy array or a tensor, got list: convert it, as np.asarray(y_test) does.",
        ),
        (
            "{**images, 'x_train': np.zeros((60, 2, 8, 8))}",
            "expected x_train of shape (n, height, width), (n, height, width, 1 or 3) or (n, 1 or 3, height, width), "
            "got (60, 2, 8, 8): reshape it.",
        ),
        (
            "{**images, 'x_train': np.full((60, 8, 8), None)}",
            "expected x_train of a real number type, got object: convert it, as x.astype(np.float32).",
        ),
        (
            "{**images, 'y_test': np.arange(30) % 4}",
            "expected the labels of y_test among those of y_train, got 3 too: leave out the test images of these "
            "classes.",
        ),
        (
            "{**images, 'x_test': images['x_test'][:5], 'y_test': images['y_test'][:5]}",
            "expected 10 test images or more, got 5: bring more of them.",
        ),
        (
            "{**sequences, 'x_train': torch.zeros(60, 7)}",
            "expected x_train of shape (n, time, features), got (60, 7): reshape it.",
        ),
        (
            "{**sequences, 'y_train': torch.zeros(60)}",
            "expected y_train of shape (n,) with integer labels, got (60,) of float32: give each of the sequences the "
            "number of its class.",
        ),
        (
            "{**sequences, 'lengths_test': torch.ones(30)}",
            "expected lengths_test of shape (30,) with integers, got (30,) of float32: give each sequence the number "
            "of its steps.",
        ),
        (
            "{**sequences, 'lengths_test': torch.arange(30) % 11}",
            "expected lengths_test from 1 to 9, the time of x_test, got 0 to 10: leave out empty sequences, and "
            "pad x_test to the longest.",
        ),
        (
            "{**sequences, 'x_test': torch.full((30, 9, 2), torch.nan)}",
            "expected finite values in x_test up to each sequence's length, got NaN or infinity: replace them, or "
            "leave these sequences out.",
        ),
        (
            "{**sequences, 'x_train': torch.ones(60, 7, 2)}",
            "expected features that vary, got one value throughout the training part in feature 0: leave that feature "
            "out.",
        ),
        ("{'text': b'abc'}", "expected text as a str, got bytes: decode or join what the function returns."),
        ("{'text': 'abc'}", "expected a text of 10,000 characters or more, got 3: return a longer one."),
    ],
)
def test_a_function_that_breaks_the_contract_is_refused_in_one_sentence(tmp_path, returned, text):
    target = function(tmp_path, returned)
    with pytest.raises(TaskError, match=exactly(f"--data {target}: {text}")):
        loaded(target)


def test_a_function_that_cannot_be_called_is_refused(tmp_path):
    path = tmp_path / "own.py"
    path.write_text("data = 3\ndef needs(n): return n\ndef fails(): raise KeyError('a')\n")
    for name, text in (
        ("data", "expected a function, got a int: write one that returns it."),
        (
            "needs",
            f"needs needs arguments (n): give literals in parentheses, as {path}:needs(…), or name a function that "
            "needs none.",
        ),
        ("fails", "fails raised KeyError: 'a'."),
        ("missing", "own has no missing."),
    ):
        with pytest.raises(TaskError, match=exactly(f"--data {path}:{name}: {text}")):
            source(f"{path}:{name}")
    with pytest.raises(TaskError, match=exactly("--data no.py:data: there is no file no.py.")) as caught:
        source("no.py:data")
    assert "\n" not in str(caught.value)


def test_a_module_that_is_not_there_is_an_unknown_form():
    text = (
        "--data minst:file: expected digits, mnist:FILE, cifar10:FILE, npz:FILE, folder:DIR, vowels:DIR, strokes, "
        "text, text:FILE, or a function of yours "
        "as package.module:function or file.py:function."
    )
    with pytest.raises(TaskError, match=exactly(text)):
        source("minst:file")


def test_every_form_names_what_it_wants():
    for prefix, form in sources.FORMS.items():
        assert bool(form.argument) == bool(form.holds), prefix
        assert form.argument or not form.optional, prefix

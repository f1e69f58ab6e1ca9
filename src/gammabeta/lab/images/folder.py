"""The user's images in folders: one folder per class, read with Pillow."""

import contextlib
import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gammabeta.lab.arrays import FEWEST, PARTS, TEST, TRAIN, VALIDATION, Draw, describe, stratified
from gammabeta.lab.images.arrays import SMALLEST, image_task
from gammabeta.lab.images.task import Task
from gammabeta.lab.task import TaskError

SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
# Pictures in formats that Pillow does not read on its own.
OTHER_FORMATS = (
    ".arw", ".cr2", ".cr3", ".dng", ".exr", ".heic", ".heif", ".hif", ".jxl", ".nef", ".nrw", ".orf", ".psd", ".raf",
    ".rw2",
)  # fmt: skip
# What archivers and file servers add: resource forks, thumbnails.
NO_CLASSES = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
SHOWN = 10
LARGEST = 32
FEWEST_FILES = 2 * FEWEST
_ORIENTATION = 0x0112  # EXIF tag; values from 5 on: the camera was turned by 90 degrees


def load(path: str | Path, most: int | None = TRAIN) -> Task:
    """Read at most 3,500 of a folder's images: 4/7 for training, 1/7 for tuning and 2/7 for the test.

    The parts have equal shares of each class. Classes are numbered in the order of
    their names. All images get one size: the median height and width. Both are reduced by one factor where the longer
    one exceeds 32 pixels, and are at least 8. Images are grey where all of them are; otherwise they have three colours.
    Transparency is dropped. Images that are not taken are not read.

    Args:
        path: a folder with one folder per class, which holds the images: DIR/cat/1.png, DIR/dog/1.png. Hidden files,
            files without an image suffix, images beside the classes' folders and what archivers add are left out.
        most: training images; None for 4/7 of all images or more, with at most 5,000 for tuning.

    Raises:
        TaskError: fewer than two classes, a class with fewer than 20 images or with images in a sub-folder too, or
            files that are no images; all of them are named at once.
        OSError: a folder that cannot be listed.
    """
    folder = Path(path)
    names, files, y_n = chosen(folder, most)
    x_nhwc = _images(folder, files)
    height, width = x_nhwc.shape[1:3]
    colour = "colour" if x_nhwc.shape[3] == 3 else "grey"
    description = (
        f"{folder.name}: {len(files)} images of {len(names)} classes, {height} × {width}, {colour}, in stratified "
        f"parts{_left_out(folder)}"
    )
    return _Taken(folder, description, x_nhwc, y_n, most, len(_listed(folder)[1])).task(0)


@dataclass(frozen=True)
class _Taken:
    """The images (n, height, width, channels) that are taken of a folder, and labels (n,)."""

    folder: Path
    description: str
    x_nhwc: np.ndarray
    y_n: np.ndarray
    most: int | None
    available: int

    def task(self, split: int) -> Task:
        """Draw the parts of a split from all images."""
        x_nhwc, y_n = self.x_nhwc, self.y_n
        count = round(len(y_n) * TEST / (TRAIN + VALIDATION + TEST))
        is_tested = np.zeros(len(y_n), dtype=bool)
        is_tested[stratified(y_n, count, np.random.default_rng([1, split]))] = True
        arrays = {
            "x_train": x_nhwc[~is_tested],
            "y_train": y_n[~is_tested],
            "x_test": x_nhwc[is_tested],
            "y_test": y_n[is_tested],
        }
        task = image_task(
            arrays,
            name=self.folder.name,
            description=self.description,
            where=f"folder:{self.folder}",
            draw=Draw(split, self.most),
            redraw=self.task,
        )
        return replace(task, available=dict.fromkeys(PARTS, self.available))


def _left_out(folder: Path) -> str:
    """Say how many images lie beside the classes' folders."""
    count = sum(file.suffix.lower() in SUFFIXES + OTHER_FORMATS for file in _files(folder))
    return f"; left out: {count} beside the classes' folders" if count else ""


def fingerprint(path: Path, most: int | None = TRAIN) -> str:
    """Hash the names of all images, and the content of those that are taken."""
    content = hashlib.sha256()
    for file in _listed(path)[1]:
        content.update(os.fsencode(file.relative_to(path)) + b"\0")
    broken = {}
    for file in chosen(path, most)[1]:
        try:
            content.update(hashlib.sha256(file.read_bytes()).digest())
        except OSError as error:
            broken[file] = error.strerror or describe(error)
    _refuse(path, broken)
    return content.hexdigest()[:16]


def chosen(folder: Path, most: int | None = TRAIN) -> tuple[list[str], list[Path], np.ndarray]:
    """Return the classes' names, and the files to take with their labels (n,) int64.

    Args:
        most: training images, with a quarter and half as many for tuning and the test; None for all images.

    Raises:
        TaskError: fewer than two classes, or too few images in one.
    """
    names, files, y_n = _listed(folder)
    if len(names) == 1 and sum(map(_holds_images, _folders(folder / names[0]))) > 1:
        raise TaskError(
            f"folder:{folder}: expected a folder for each class, two or more, got 1, whose folders hold images: name "
            f"{folder / names[0]}."
        )
    if len(names) < 2:
        raise TaskError(
            f"folder:{folder}: expected a folder for each class, two or more, got {len(names)}: put the images into "
            "folders named by their class."
        )
    counts = np.bincount(y_n, minlength=len(names))
    least = int(np.argmin(counts))
    for place, name in enumerate(names):
        _check_contents(folder, name, int(counts[place]))
    if counts[least] < FEWEST_FILES:
        raise TaskError(
            f"folder:{folder}: expected {FEWEST_FILES} images of each class or more, got {counts[least]} in "
            f"{names[least]}: add more, or remove that folder."
        )
    wanted = len(y_n) if most is None else min(round(most * (TRAIN + VALIDATION + TEST) / TRAIN), len(y_n))
    index = stratified(y_n, wanted, np.random.default_rng(0))
    counts = np.bincount(y_n[index], minlength=len(names))
    least = int(np.argmin(counts))
    if counts[least] < FEWEST_FILES:
        raise TaskError(
            f"folder:{folder}: expected {FEWEST_FILES} images of each class or more among the {len(index)} that the "
            f"study takes, got {counts[least]} in {names[least]}: take more with --train, or name a folder with "
            "fewer classes, or with classes of more similar sizes."
        )
    return names, [files[place] for place in index], y_n[index]


def _check_contents(folder: Path, name: str, images: int) -> None:
    """Check that a class's folder holds all its images itself, in formats that can be read."""
    files = _files(folder / name)
    below = [entry.name for entry in _folders(folder / name) if _holds_images(entry)]
    where = f"folder:{folder}: expected images ({', '.join(SUFFIXES)}) in each class's folder itself"
    if below:
        if images:
            raise TaskError(
                f"{where}, got some in {name} and others in {name}/{below[0]}, which would be left out: put all images "
                "of a class into one folder."
            )
        raise TaskError(f"{where}, got none in {name}: name the folder whose folders are the classes.")
    suffixes = Counter(file.suffix.lower() for file in files if file.suffix.lower() not in SUFFIXES)
    foreign = {suffix: count for suffix, count in suffixes.most_common() if suffix in OTHER_FORMATS}
    if foreign or (suffixes and not images):
        suffix, count = suffixes.most_common(1)[0] if not foreign else next(iter(foreign.items()))
        kind = (
            f"file{'s' if count > 1 else ''} {suffix}" if suffix else f"file{'s' if count > 1 else ''} without suffix"
        )
        todo = "convert them, to .png for example" if suffix else "name them by their format, as 1.png"
        beside = f" beside {images} images" if images else ""
        raise TaskError(f"{where}, got {count} {kind} in {name}{beside}: {todo}, or remove them.")
    if not images:
        raise TaskError(f"{where}, got an empty folder {name}: put the images of that class into it, or remove it.")


def _holds_images(folder: Path) -> bool:
    return any(file.suffix.lower() in SUFFIXES + OTHER_FORMATS for file in _files(folder)) or any(
        _holds_images(entry) for entry in _folders(folder) if not entry.is_symlink()
    )


def _files(folder: Path) -> list[Path]:
    """Return the files of a folder that are not hidden, in the order of their names, with links that lead nowhere."""
    return sorted(
        entry
        for entry in folder.iterdir()
        if not entry.name.startswith(".") and (entry.is_file() or (entry.is_symlink() and not entry.exists()))
    )


def _folders(folder: Path) -> list[Path]:
    """Return the folders in a folder that people made, in the order of their names."""
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".") and entry.name not in NO_CLASSES
    )


def _listed(folder: Path) -> tuple[list[str], list[Path], np.ndarray]:
    """Return all classes' names, files and labels, in the order of the names."""
    classes = _folders(folder)
    files: list[Path] = []
    labels: list[int] = []
    for label, of_class in enumerate(classes):
        own = [file for file in _files(of_class) if file.suffix.lower() in SUFFIXES]
        files += own
        labels += [label] * len(own)
    return [entry.name for entry in classes], files, np.array(labels, dtype=np.int64)


def _images(folder: Path, files: list[Path]) -> np.ndarray:
    """Read the images as (n, height, width, 1 or 3) float32, 0 to 255, in one size."""
    try:
        from PIL import Image
    except ImportError as error:
        raise TaskError(
            f"folder:{folder}: expected Pillow, which reads images, got none installed: pip install pillow."
        ) from error
    sizes, grey = [], True
    broken: dict[Path, str] = {}
    for file in files:
        with _reading(file, broken), Image.open(file) as image:
            turned = _orientation(image) >= 5
            sizes.append(image.size[::-1] if not turned else image.size)
            grey = grey and image.mode.split(";")[0] in ("1", "L", "LA", "La", "I", "F")
    height, width = np.median(sizes, axis=0) if sizes else (SMALLEST, SMALLEST)
    factor = min(1.0, LARGEST / max(height, width))
    size = max(SMALLEST, round(factor * height)), max(SMALLEST, round(factor * width))
    pixels = []
    for file in files:
        if file not in broken:
            with _reading(file, broken), Image.open(file) as image:
                pixels.append(_pixels(image, size, grey))
    _refuse(folder, broken)
    return np.stack(pixels)


def _orientation(image: Any) -> int:
    """Return how the camera was held, by EXIF; 1, which is upright, where it says nothing or is damaged."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow raises many kinds where a block of metadata is cut off or changed
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _pixels(image: Any, size: tuple[int, int], grey: bool) -> np.ndarray:
    """Convert one image to (height, width, 1 or 3) float32, 0 to 255; 16-bit grey is scaled to that range."""
    from PIL import Image, ImageOps

    height, width = size
    image.draft(None, (2 * width, 2 * height))  # decode a JPEG no larger than necessary
    if _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    deep = image.mode.startswith("I")
    if deep or image.mode == "F":
        plane = image.convert("F").resize((width, height), Image.Resampling.BILINEAR)
        hw1 = np.asarray(plane, dtype=np.float32)[:, :, None] / (257 if deep else 1)
        return hw1 if grey else np.repeat(hw1, 3, axis=2)
    image = image.convert("L" if grey else "RGB").resize((width, height), Image.Resampling.BILINEAR)
    array = np.asarray(image, dtype=np.float32)
    return array[:, :, None] if grey else array


@contextlib.contextmanager
def _reading(file: Path, broken: dict[Path, str]) -> Iterator[None]:
    """Note whatever Pillow raises about a file; the next one is read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about metadata, which is not used
            yield
    except Exception as error:
        # Where the file system refuses there is a reason; where Pillow does, only the kind of the error is of use.
        broken[file] = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


def _refuse(folder: Path, broken: Mapping[Path, str]) -> None:
    """Raise a TaskError that names the files that could not be read, the first ten one by one."""
    if not broken:
        return
    shown = [f"{file.relative_to(folder)} ({reason})" for file, reason in sorted(broken.items())[:SHOWN]]
    if len(broken) == 1:
        name, _, reason = shown[0].rpartition(" (")
        raise TaskError(
            f"folder:{folder}: expected an image in {name}, and could not read it as one ({reason}: "
            "replace or remove the file."
        )
    more = f", and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
    raise TaskError(
        f"folder:{folder}: expected images, and could not read {len(broken)} files as such: {', '.join(shown)}{more}: "
        "replace or remove these files."
    )

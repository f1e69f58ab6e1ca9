"""The user's images in folders: one folder per class, read with Pillow."""

import contextlib
import hashlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gammabeta.lab.arrays import FEWEST, TEST, TRAIN, VALIDATION, stratified
from gammabeta.lab.images.arrays import SMALLEST, image_task
from gammabeta.lab.images.task import Task
from gammabeta.lab.task import TaskError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
LARGEST = 32
FEWEST_FILES = 2 * FEWEST
_ORIENTATION = 0x0112  # EXIF tag; values from 5 on: the camera was turned by 90 degrees


def load(path: str | Path) -> Task:
    """Read at most 3,500 of a folder's images: 4/7 for training, 1/7 for tuning and 2/7 for the test.

    The parts are drawn once, with a fixed seed and equal shares of each class. Classes are numbered in the order of
    their names. All images get one size: the median height and width. Both are reduced by one factor where the longer
    one exceeds 32 pixels, and are at least 8. Images are grey where all of them are; otherwise they have three colours.
    Transparency is dropped.

    Args:
        path: a folder with one folder per class, which holds the images: DIR/cat/1.png, DIR/dog/1.png. Hidden files and
            files without an image suffix are ignored.

    Raises:
        TaskError: fewer than two classes, a class with fewer than 20 images, or a file that is not an image.
    """
    folder = Path(path)
    names, files, y_n = chosen(folder)
    x_nhwc = _images(folder, files)
    tested = stratified(y_n, round(len(y_n) * TEST / (TRAIN + VALIDATION + TEST)), np.random.default_rng(1))
    is_tested = np.zeros(len(y_n), dtype=bool)
    is_tested[tested] = True
    arrays = {
        "x_train": x_nhwc[~is_tested],
        "y_train": y_n[~is_tested],
        "x_test": x_nhwc[is_tested],
        "y_test": y_n[is_tested],
    }
    height, width = x_nhwc.shape[1:3]
    colour = "colour" if x_nhwc.shape[3] == 3 else "grey"
    description = (
        f"{folder.name}: {len(files)} images of {len(names)} classes, {height} × {width}, {colour}, stratified fixed "
        "split"
    )
    return image_task(arrays, name=folder.name, description=description, where=f"folder:{path}")


def fingerprint(path: Path) -> str:
    """Hash the names of all images, and the content of those that are used."""
    content = hashlib.sha256()
    for file in _listed(path)[1]:
        content.update(f"{file.relative_to(path)}\0".encode())
    for file in chosen(path)[1]:
        content.update(hashlib.sha256(file.read_bytes()).digest())
    return content.hexdigest()[:16]


def chosen(folder: Path) -> tuple[list[str], list[Path], np.ndarray]:
    """Return the classes' names, and at most 3,500 files with their labels (n,) int64.

    Raises:
        TaskError: fewer than two classes, or too few images in one.
    """
    names, files, y_n = _listed(folder)
    if len(names) < 2:
        raise TaskError(
            f"folder:{folder}: expected a folder for each class, two or more, got {len(names)}: put the images into "
            "folders named by their class."
        )
    counts = np.bincount(y_n, minlength=len(names))
    least = int(np.argmin(counts))
    if counts[least] == 0:
        raise TaskError(
            f"folder:{folder}: expected images ({', '.join(SUFFIXES)}) in each class's folder itself, got none in "
            f"{names[least]}: name the folder whose folders are the classes."
        )
    if counts[least] < FEWEST_FILES:
        raise TaskError(
            f"folder:{folder}: expected {FEWEST_FILES} images of each class or more, got {counts[least]} in "
            f"{names[least]}: add more, or remove that folder."
        )
    index = stratified(y_n, min(TRAIN + VALIDATION + TEST, len(y_n)), np.random.default_rng(0))
    counts = np.bincount(y_n[index], minlength=len(names))
    least = int(np.argmin(counts))
    if counts[least] < FEWEST_FILES:
        raise TaskError(
            f"folder:{folder}: expected {FEWEST_FILES} images of each class or more among the {len(index)} that the "
            f"study takes, got {counts[least]} in {names[least]}: name a folder with fewer classes, or with "
            "classes of more similar sizes."
        )
    return names, [files[place] for place in index], y_n[index]


def _listed(folder: Path) -> tuple[list[str], list[Path], np.ndarray]:
    """Return all classes' names, files and labels, in the order of the names."""
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    files: list[Path] = []
    labels: list[int] = []
    for label, of_class in enumerate(classes):
        own = sorted(
            file
            for file in of_class.iterdir()
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
        )
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
    for file in files:
        with _reading(folder, file), Image.open(file) as image:
            turned = image.getexif().get(_ORIENTATION, 1) >= 5
            sizes.append(image.size[::-1] if not turned else image.size)
            grey = grey and image.mode.split(";")[0] in ("1", "L", "LA", "La", "I", "F")
    height, width = np.median(sizes, axis=0)
    factor = min(1.0, LARGEST / max(height, width))
    size = max(SMALLEST, round(factor * height)), max(SMALLEST, round(factor * width))
    pixels = []
    for file in files:
        with _reading(folder, file), Image.open(file) as image:
            pixels.append(_pixels(image, size, grey))
    return np.stack(pixels)


def _pixels(image: Any, size: tuple[int, int], grey: bool) -> np.ndarray:
    """Convert one image to (height, width, 1 or 3) float32, 0 to 255; 16-bit grey is scaled to that range."""
    from PIL import Image, ImageOps

    height, width = size
    image.draft(None, (2 * width, 2 * height))  # decode a JPEG no larger than necessary
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
def _reading(folder: Path, file: Path) -> Iterator[None]:
    """Turn whatever Pillow raises about a file into one sentence that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about metadata, which is not used
            yield
    except Exception as error:
        raise TaskError(
            f"folder:{folder}: expected an image in {file.relative_to(folder)}, and could not read it as one "
            f"({type(error).__name__}): replace or remove the file."
        ) from error

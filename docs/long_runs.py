"""Train one network of each kind at length, to show that the study's recipes are those of real training.

    python docs/long_runs.py mnist FILE      the small ResNet on all of MNIST: the error on its 10,000 test images
    python docs/long_runs.py cifar10 FILE    ResNet-20 with crop and flip: the error on the file's test images
    python docs/long_runs.py text FILE       4 layers of width 128: the loss on the last tenth of the text

Each takes 5 to 40 minutes, and keeps its figures in docs/long_runs.json; docs/anchors.md has them beside published
ones. The rate is not tuned: it is one that the study chooses on such data.
"""

import json
import platform
import re
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch

import gammabeta
from gammabeta.lab.images.recipe import RECIPE
from gammabeta.lab.images.task import Split
from gammabeta.lab.images.training import Training, fit, judge
from gammabeta.lab.sources import load, load_text, source
from gammabeta.lab.text.training import language_model

KEPT = Path(__file__).with_name("long_runs.json")
Json = dict[str, Any]

# nanoGPT's run for a CPU: batches of 12 windows of 64 characters, 2,000 steps, the loss of the last tenth of the text.
TEXT = {"width": 128, "layers": 4, "context": 64, "batch": 12, "steps": 2000, "rate": 2.0**-9}


def images(data: str, network: str, batch_size: int, epochs: int, **more: Any) -> Json:
    """Train on all training images, those for tuning too; return the settings and the error on all test images."""
    task = load(source(data, "all"))
    both = task.train, task.validation
    whole = Split(*(torch.cat(parts) for parts in zip(*((split.x_nchw, split.y_n) for split in both), strict=True)))
    training = Training(
        network={"kind": network, "init": "matched"},
        norm="batch",
        rate=0.125,
        batch_size=batch_size,
        steps=epochs * len(whole) // batch_size,
        seed=1,
        **RECIPE,
        **more,
    )
    model = fit(task, whole, training).model.eval()
    return {"images": len(whole), "tested": len(task.test), "epochs": epochs, "error": judge(model, task.test).error}


def text(file: str) -> Json:
    """Train on the first nine tenths; return the mean loss on the last tenth, which split 0 has as two halves."""
    task = source(f"text:{file}")
    found = language_model(task=task, arm="layer", seed=1, report="test", **TEXT)
    losses = found["loss"], found["validation"]["loss"]
    seen = TEXT["steps"] * TEXT["batch"] * TEXT["context"]
    return {"loss": sum(losses) / 2, "steps": TEXT["steps"], "epochs": seen / len(load_text(task).train_n)}


RUNS = {
    "mnist": lambda file: images(f"mnist:{file}", "resnet", 64, 20),
    "cifar10": lambda file: images(f"cifar10:{file}", "resnet20", 64, 120, augment=True),
    "text": text,
}


def main(name: str, file: str) -> None:
    """Make one run, and keep its figures."""
    gammabeta.warm_allocator()
    began = time.perf_counter()
    found = RUNS[name](file)
    cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.M)
    found |= {
        "minutes": round((time.perf_counter() - began) / 60, 1),
        "threads": torch.get_num_threads(),
        "machine": cpu.group(1) if cpu else platform.processor(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }
    kept: Json = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    KEPT.write_text(json.dumps({**kept, name: found}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found))


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in RUNS:
        sys.exit(__doc__)
    main(*sys.argv[1:])

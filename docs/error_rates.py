"""Measure how often the study tells identical arms apart, and keep the figures in docs/error_rates.json.

    python docs/error_rates.py [--mnist FILE] [--folder DIR]

One norm is trained under six names on 100 replicates of each of two tasks: digits, whose splits are drawn anew, and
1,000 training images of MNIST, whose test set is kept. Each replicate is the whole procedure, with its own choice of the
learning rate. Two sets of replicates that share none are compared too: do their intervals cover each other's means?
docs/generate.py draws docs/error_rates.md from the figures. With --folder an interrupted run continues.
"""

import argparse
import json
import math
import platform
import tempfile
import time
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.identical_arms import contests, trained
from gammabeta.lab.outcome import Criterion
from gammabeta.lab.paired import paired_errors
from gammabeta.lab.sources import source
from gammabeta.lab.trials.store import Store
from gammabeta.lab.trials.trial import cores

HERE = Path(__file__).parent
KEPT = HERE / "error_rates.json"
NAMES, REPLICATES, CONTESTS, DRAWN = 6, 100, 100, 10
STEPS, NORM = 620, "batch"
Json = dict[str, Any]


def measured(experiment: Experiment) -> Json:
    """Train the arms on one task and judge contests between them."""
    network = experiment.mlp(2, width=32)
    results = trained(experiment, network, NORM, NAMES, range(1, REPLICATES + 1), STEPS)
    rates = contests(experiment, results, CONTESTS, DRAWN)
    return {
        "task": experiment.task.description,
        "keeps_test": experiment.task.keeps_test,
        "replicates": REPLICATES,
        "names": NAMES,
        "drawn": DRAWN,
        "error": float(np.mean([100 * result["moving_error"] for own in results.values() for result in own])),
        **asdict(rates),
        "coverage": covered(experiment, results),
    }


def covered(experiment: Experiment, results: dict[str, list[dict[str, Any]]]) -> dict[str, int]:
    """Count the effects of two disjoint sets of replicates that differ by more than both half widths allow."""
    criterion = Criterion(unit="points", margin=(-1.0, 1.0), direction="above")
    names, halves, apart, effects = list(results), (slice(0, DRAWN), slice(DRAWN, 2 * DRAWN)), 0, 0
    for start in range(0, REPLICATES - 2 * DRAWN + 1, 2 * DRAWN):
        for other in names[1:]:
            pair = []
            for half in halves:
                of = [results[name][start : start + 2 * DRAWN][half] for name in (names[0], other)]
                values, precision = paired_errors(experiment, *of, "moving_error")
                pair.append(criterion.effect(other, values, precision))
            allowed = math.hypot(*((effect.high - effect.low) / 2 for effect in pair))
            apart += abs(pair[0].value - pair[1].value) > allowed
            effects += 1
    return {"effects": effects, "apart": apart}


def main() -> None:
    """Measure both tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", metavar="FILE", help="an .npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--folder", metavar="DIR", help="where finished trials are kept")
    given = parser.parse_args()
    tasks = [source("digits"), *([source(f"mnist:{given.mnist}", 1000)] if given.mnist else [])]
    with tempfile.TemporaryDirectory() as made, Progress() as bar:
        store = Store(given.folder or made)
        found = []
        for task in tasks:
            running = bar.add_task(str(task["data"]).partition(":")[0])

            def progress(done: int, total: int, running: Any = running) -> None:
                bar.update(running, completed=done, total=total)

            experiment = Experiment({"images": task}, store, jobs=cores(), progress=progress)
            start = time.perf_counter()
            found.append(measured(experiment))
            found[-1]["minutes"] = round((time.perf_counter() - start) / 60, 1)
        store.close()
    content = {"date": str(date.today()), "machine": platform.machine(), "tasks": found}
    KEPT.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(content, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()

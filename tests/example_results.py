"""Made-up results with everything that a study may hand to the report, for the tests of the report alone."""

from __future__ import annotations

import math
from typing import Any

Json = dict[str, Any]

ARMS = ("none", "BatchNorm", "GroupNorm", "LayerNorm", "InstanceNorm", "RMSNorm", "Ghost(8)", "Renorm")
HOSTILE = '<script>alert("x")</script> & <b>bold</b> "quoted" %{y} @batch'


def axis(label: str, unit: str = "", log: bool = False) -> Json:
    return {"label": label, "unit": unit, "log": log}


def picture(title: str, kind: str, x: Json, y: Json, **more: Any) -> Json:
    return {"title": title, "caption": f"Caption of {title}.", "kind": kind, "x": x, "y": y, **more}


def effect(name: str, value: float, low: float | None, high: float | None, **more: Any) -> Json:
    given = {"unit": "ratio of steps", "margin": [0.8, 1.25], "null": 1.0, "verdict": "supported", "seeds": 6}
    return {"name": name, "value": value, "low": low, "high": high, "seeds_needed": None, **given, **more}


def error_by_batch_size() -> Json:
    sizes = [2, 4, 8, 16, 32]
    series = []
    for i, arm in enumerate(ARMS):
        y: list[float | None] = [
            (60.0 if arm == "BatchNorm" else 5 + i) / (1 + j * (4 if arm == "BatchNorm" else 0.1)) for j in range(5)
        ]
        low: list[float | None] = [None if v is None else 0.85 * v for v in y]
        high: list[float | None] = [None if v is None else 1.2 * v for v in y]
        if arm == "InstanceNorm":
            y[0] = low[0] = high[0] = None
        series.append({"name": arm, "x": sizes, "y": y, "low": low, "high": high, "dash": arm == "none"})
    return picture(
        "Test error against batch size",
        "line",
        axis("batch size", "images", log=True),
        axis("test error", "%", log=True),
        series=series,
        lines=[{"axis": "y", "value": 10.0, "label": "margin"}, {"axis": "x", "value": 4, "label": "claimed below"}],
    )


def losses() -> Json:
    steps = list(range(0, 200, 5))
    series = []
    for arm, rate in (("none", 0.008), ("BatchNorm", 0.03), ("BatchNorm, torch's default init", 0.02)):
        y = [2.3 * math.exp(-rate * s) + 0.02 for s in steps]
        series.append(
            {"name": arm, "x": steps, "y": y, "low": [0.8 * v for v in y], "high": [1.25 * v for v in y], "dash": False}
        )
    return picture("Training loss", "line", axis("step"), axis("training loss", "nats", log=True), series=series)


def bars() -> Json:
    return picture(
        "Largest rate that trains",
        "bar",
        axis("network"),
        axis("learning rate", "", log=True),
        series=[
            {
                "name": name,
                "x": ["MLP, 4 layers", "MLP, 12 layers", "small ResNet with a rather long name of its own"],
                "y": values,
                "low": None,
                "high": None,
                "dash": False,
            }
            for name, values in (("none", [0.25, 0.06, 0.5]), ("BatchNorm", [2.0, 2.0, None]))
        ],
        lines=[{"axis": "y", "value": 1.0, "label": "1"}],
    )


def gains() -> Json:
    """Effects of one series with intervals and margins, as the comparison of the norms draws them."""
    series = {
        "name": "effect",
        "x": ["GroupNorm", "LayerNorm", "RMSNorm"],
        "y": [2.0, -3.0, 0.5],
        "low": [1.2, -4.5, None],
        "high": [2.8, -1.5, None],
    }
    return picture(
        "Test error of BatchNorm minus that of each norm",
        "bar",
        axis("norm"),
        axis("difference of test error", "percentage points"),
        series=[series],
        lines=[{"axis": "y", "value": -1.0, "label": "margin"}, {"axis": "y", "value": 1.0, "label": "margin"}],
    ) | {"caption": "Above 0: better than BatchNorm."}


def heatmap() -> Json:
    columns = ["scale a sample", "shift a sample", "scale a channel", "shift a channel", "swap companions"]
    rows = ["BatchNorm", "LayerNorm", "GroupNorm", "InstanceNorm", "RMSNorm"]
    z: list[list[float | None]] = [
        [1e-16 if (i + j) % 3 else 0.4 + i * 0.1 for j in range(len(columns))] for i in range(len(rows))
    ]
    z[4][4] = None
    text = [["n/a" if v is None else "same" if v < 1e-9 else "moves" for v in row] for row in z]
    return picture(
        "What leaves the output as it is",
        "heatmap",
        axis("change of the input"),
        axis("norm"),
        heat={"x": columns, "y": rows, "z": z, "text": text},
    )


def signed_heatmap() -> Json:
    z = [[-0.3, 0.0, 0.8], [1.4, -0.9, 0.2]]
    heat = {"x": ["relu", "tanh", "sigmoid"], "y": ["depth 10", "depth 20"], "z": z, "text": []}
    return picture("Decades of gradient", "heatmap", axis("activation"), axis(""), series=[], heat=heat)


def claim(name: str, title: str, verdict: str, **more: Any) -> Json:
    return {
        "name": name,
        "title": title,
        "question": f"Is it so that {title[0].lower()}{title[1:]}?",
        "criterion": "The ratio of steps to the target is above 1.25: the `whole` interval, over seeds.",
        "method": "Each arm at its own best rate, tuned on the validation split.\n\n- paired by seed\n- bootstrap",
        "settings": "depth 8, width 64, relu, He",
        "sources": ["Ioffe & Szegedy 2015 (1502.03167)", "Wu & He 2018 (1803.08494)"],
        "exact": False,
        "verdict": verdict,
        "sentence": "BatchNorm reaches a training loss of 0.1 in 1.9 times fewer steps than no norm [1.5, 2.2].",
        "effects": [effect("steps without over steps with BatchNorm", 1.9, 1.5, 2.2, verdict=verdict)],
        "room": {"holds": True, "control": "Required: none trains above 20 %; seen: 91.2 %."},
        "pictures": [],
        "tables": [],
        "trials": [],
        "seconds": 12.34,
    } | more


def trials() -> Json:
    made: Json = {}
    for i in range(24):
        made[f"{i:02d}c0ffee{i:04x}5eed{i:04x}"] = {
            "run": "gammabeta.lab.images.training:train",
            "settings": {
                "norm": ARMS[i % 4],
                "rate": 0.1 * 2 ** (i % 3),
                "seed": i,
                "depth": 8,
                "network": {"kind": "mlp", "width": 64},
            },
            "result": {
                "loss": [2.3 / (1 + j) for j in range(50)],
                "steps": None if i == 3 else 40 + i,
                "error": 0.031 + i / 1000,
            },
            "seconds": 0.4 + i / 100,
        }
    made["probe"] = {
        "run": "gammabeta.lab.images.probe:run",
        "settings": {"note": HOSTILE},
        "result": {},
        "seconds": 0.01,
    }
    return made


def example_results() -> Json:
    """New results at every call, so that a test may change them."""
    all_trials = trials()
    return {
        "schema": 2,
        "gammabeta": "0.1.0",
        "torch": "2.13.0",
        "python": "3.12.1",
        "date": "2026-03-04T05:06:07+00:00",
        "machine": "A processor of some kind, 2 cores",
        "command": "gammabeta study --quick --out 'a <b> folder'",
        "task": {
            "name": "digits",
            "kind": "images",
            "shape": [1, 8, 8],
            "classes": 10,
            "samples": {"train": 1078, "validation": 359, "test": 360},
            "model": "my_models.py:Net(width=<64>)",
            "available": {"train": 1438, "test": 360},
            "description": "scikit-learn's handwritten digits, 8×8 grey images.",
        },
        "quick": True,
        "seconds": 143.2,
        "recommendations": [
            {
                "headline": "For a small ResNet on digits: use BatchNorm at batches of 16 or more, GroupNorm below. "
                "Its error is at least 0.4 points lower, over 4 replicates.",
                "settled": False,
                "seeds": 4,
                "scope": "After 300 steps.",
                "costs": "18 % less time per step, 46 % less memory kept for the backward pass.",
                "how": "gb.GroupNorm(8, channels); after training gb.recalibrate(model, batches)",
                "settle": "gammabeta study --compare --until-settled --seed 1 --out again",
                "evidence": [
                    {
                        "side": "for",
                        "text": "With BatchNorm training takes far fewer steps: contradicted, 0.7 [0.6, 0.9].",
                        "claim": "faster_convergence",
                    },
                    {"text": "GroupNorm: test error 1.5 %.", "claim": "comparison"},
                    {"text": "Speaks of a claim that was not run.", "claim": "sequences"},
                ],
                "avoid": ["InstanceNorm on inputs of one position: its output is β."],
                "uncertain": "RMSNorm is not distinguished from BatchNorm.",
                "picture": gains(),
                "table": {
                    "title": "Norms side by side",
                    "columns": ["norm", "test error, %"],
                    "rows": [["GroupNorm", 1.5], ["BatchNorm", 2.03125]],
                },
            }
        ],
        "claims": [
            claim(
                "faster_convergence",
                "With BatchNorm training takes far fewer steps",
                "supported",
                pictures=[losses()],
                trials=list(all_trials)[:24],
            ),
            claim(
                "small_batch",
                "BatchNorm needs a large enough batch",
                "contradicted",
                pictures=[error_by_batch_size(), bars()],
                effects=[
                    effect("BN's error at 4 or less over its own at 32", 0.4, 0.31, 0.62, verdict="contradicted"),
                    effect("GN's", 1.02, 0.93, 1.1, verdict="equivalent"),
                    effect(
                        "points of error",
                        3.1,
                        None,
                        None,
                        unit="points",
                        margin=[-1, 1],
                        null=0.0,
                        seeds=1,
                        verdict="inconclusive",
                        seeds_needed=7,
                    ),
                ],
                tables=[
                    {
                        "title": "Test error, by network and norm",
                        "columns": ["network", "norm", *(f"batch {2**i}" for i in range(1, 8))],
                        "rows": [["MLP", arm, *(5.25 + i * 1.5 for i in range(6)), None] for arm in ARMS],
                    }
                ],
            ),
            claim(
                "batch_noise",
                "The same sample is normalized differently from batch to batch",
                "equivalent",
                effects=[
                    effect(
                        "slope",
                        -0.49,
                        -0.52,
                        -0.46,
                        unit="decades a decade",
                        margin=[-0.6, -0.4],
                        null=-0.5,
                        verdict="equivalent",
                    )
                ],
            ),
            claim(
                "gradient_flow",
                "Vanishing and exploding gradients are relieved",
                "inconclusive",
                tally="inconclusive in 1 of 1 regime",
                regimes={"relu": "inconclusive"},
                pictures=[signed_heatmap()],
                effects=[
                    effect(
                        "relu, difference of decades",
                        0.31,
                        -0.4,
                        1.1,
                        unit="decades",
                        margin=[-0.25, 0.25],
                        null=0,
                        verdict="inconclusive",
                        seeds_needed=23,
                    )
                ],
            ),
            claim(
                "higher_learning_rate",
                "Much larger learning rates work",
                "no room here",
                effects=[],
                sentence="Nothing on the grid diverges, with or without a norm.",
                room={"holds": False, "control": "Required: a rate that diverges; seen: none up to 64."},
            ),
            claim(
                "axes",
                "BatchNorm normalizes a channel over samples, LayerNorm a sample over channels",
                "supported",
                exact=True,
                pictures=[heatmap()],
                effects=[
                    effect(
                        "cells that differ from the derived table, of 40",
                        0,
                        0,
                        0,
                        unit="cells",
                        margin=[0, 0],
                        null=0,
                        seeds=1,
                    )
                ],
            ),
            {
                "name": "hostile",
                "title": HOSTILE,
                "verdict": "interrupted",
                "question": HOSTILE,
                "sentence": HOSTILE,
                "criterion": HOSTILE,
                "sources": [HOSTILE],
                "room": {"holds": False, "control": HOSTILE},
                "effects": [effect(HOSTILE, 1.0, 0.5, 2.0, unit=HOSTILE, verdict="inconclusive")],
                "tables": [{"title": HOSTILE, "columns": [HOSTILE], "rows": [[HOSTILE]]}],
                "pictures": [
                    picture(
                        HOSTILE,
                        "line",
                        axis(HOSTILE, HOSTILE),
                        axis(HOSTILE, HOSTILE),
                        series=[
                            {
                                "name": HOSTILE,
                                "x": [0, 1, 2],
                                "y": [1.0, -3.0, None],
                                "low": None,
                                "high": None,
                                "dash": True,
                            },
                            {"name": "a second one", "x": [0, 1, 2], "y": [2.0, 2.5, 1.0]},
                        ],
                    ),
                    picture(
                        "",
                        "bar",
                        axis(""),
                        axis("error", "%"),
                        series=[
                            {
                                "name": "error",
                                "x": ["none", "batch", "group"],
                                "y": [3.0, 1.0, 2.0],
                                "low": [2.5, 0.5, 1.5],
                                "high": [4.0, 2.0, 2.2],
                                "dash": False,
                            }
                        ],
                    ),
                ],
                "trials": ["probe", "a key that is not there"],
            },
            {"name": "bare", "verdict": "interrupted"},
        ],
        "trials": all_trials,
    }

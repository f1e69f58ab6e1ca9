"""Comparisons whose numbers are made up."""

from gammabeta.lab.comparison import ERROR, Compared, Comparison, side_by_side
from gammabeta.lab.interval import CONTINUOUS

BATCH = (3.0, 3.2, 3.1, 3.1)
NEAR = (2.0, 2.6, 3.4, 2.8)  # 0.4 below BATCH on average, with a spread of 0.5
LEVEL = (2.9, 3.2, 3.2, 3.0)  # 0.02 below, with a spread of 0.1
BETTER = (1.0, 1.1, 0.9, 1.0)
WORSE = (9.0, 9.1, 9.2, 9.1)
NAMES = {"batch": "BatchNorm", "group": "GroupNorm", "none": "no normalization", "layer": "LayerNorm", "rms": "RMSNorm"}


def compared(values, *, timings=None, saved=None, recomputed=None, recalibrated=None, precision=CONTINUOUS,
             headroom=None, fragile=(), **of_comparison):  # fmt: skip
    """Compare norms with these values, one per seed; the first is the usual one."""
    given = {"scale": ERROR, "kind": "images", "devices": 1, "learned": True, "batch_size": 4, **of_comparison}
    arms = side_by_side(
        [
            Compared(
                norm,
                NAMES.get(norm, norm),
                0.5,
                tuple(of_norm),
                (timings or {}).get(norm, (0.01, 0.01)),
                (saved or {}).get(norm, 1000),
                (recalibrated or {}).get(norm, ()),
                recomputed=(recomputed or {}).get(norm),
                headroom=(headroom or {}).get(norm),
                fragile=norm in fragile,
            )
            for norm, of_norm in values.items()
        ],
        given["scale"],
        precision,
    )
    return Comparison(data="digits", network="ResNet", steps=400, arms=arms, **given)

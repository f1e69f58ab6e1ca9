"""Looking again at an honest price: how much of the error rate each look at a growing number of replicates may spend.

The looks and the maximum are fixed beforehand. Look k at R_k replicates spends α(t_k) − α(t_(k−1)) of α = 5 %, with
t = R/64 and Pocock-type spending α(t) = α·ln(1 + (e − 1)·t) (Lan & DeMets 1983). The intervals of look k have the
confidence 1 − what it spends, so that by the union bound a study decides wrongly at any of its looks with at most α.
"""

import math

LOOKS = (4, 8, 16, 32, 64)
MOST = LOOKS[-1]
ALPHA = 0.05


def spent(replicates: int) -> float:
    """Return α(t): what has been spent when the study has looked at this many replicates."""
    return ALPHA * math.log(1 + (math.e - 1) * replicates / MOST)


def confidence(replicates: int) -> float:
    """Return the confidence of the intervals at the look at this many replicates, one of ``LOOKS``."""
    place = LOOKS.index(replicates)
    return 1 - (spent(replicates) - (spent(LOOKS[place - 1]) if place else 0.0))

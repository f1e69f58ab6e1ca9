"""How finely losses on images are known: what redrawn splits have in common."""

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.interval import CONTINUOUS, Precision


def precision_of_losses(experiment: Experiment) -> Precision:
    """Return the precision of differences of test losses between two arms, one per replicate.

    Replicates that draw their own test images from the same data are not independent; where all share the test images,
    the interval speaks of these.
    """
    task = experiment.task
    if task.keeps_test:
        return CONTINUOUS
    return Precision(samples=len(task.test), trained_on=len(task.train), rates=False)

"""How finely quantities other than error rates are known on images: what redrawn splits have in common."""

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


def precision_on_validation(experiment: Experiment, step: float = 0.0) -> Precision:
    """Return the precision of what is measured on the validation images, such as the steps to an accuracy.

    Every replicate draws its validation and training images from the same data, also where the test images are kept.

    Args:
        step: of the grid that values are read off, on their scale.
    """
    task = experiment.task
    return Precision(step=step, samples=len(task.validation), trained_on=len(task.train), rates=False)

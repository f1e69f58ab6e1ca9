"""Standardization by the training part: x becomes (x − μ)/σ, in float32."""

from dataclasses import dataclass

import numpy as np

from gammabeta.lab.task import TaskError

# Larger values are natural in few data, and usual as marks of missing ones: 1e20, 9.97e36, 3.4e38.
SUSPICIOUS = 1e6
FARTHEST = 1e9  # standard deviations from the training mean; networks in float32 overflow where such values are squared
_SAMPLE = 100_000  # values of a feature that decide whether an outlier hides the others


@dataclass(frozen=True)
class Standardization:
    """Mean and standard deviation (which divides by the count) of each feature of the training part.

    Both are of x divided by a power of two, which is exact: squares of 1e300 would overflow, those of 1e-300 vanish.

    Attributes:
        scale: the power of two, broadcastable to x.
        mean, std: of x / scale, broadcastable to x.
    """

    scale: np.ndarray
    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, axes: tuple[int, ...], where: str, what: str) -> "Standardization":
        """Take the mean and standard deviation of the training part.

        Args:
            x: finite values, float64, with the features on axis 1.
            axes: all axes but that one.
            where: the start of the error message.
            what: what the values are, for the message: ``"pixels"`` or ``"values"``.

        Raises:
            TaskError: a few values of a feature are so large that the others become one value beside them.
        """
        largest = np.abs(x).max(axis=axes, keepdims=True)
        scale = np.exp2(np.frexp(largest)[1] - 1.0)
        scaled = x / scale
        found = cls(scale, scaled.mean(axis=axes, keepdims=True), scaled.std(axis=axes, keepdims=True))
        for feature in range(x.shape[1]):
            if largest.flat[feature] > SUSPICIOUS and found._hides(x[:, feature].ravel(), feature):
                raise TaskError(
                    f"{where}: expected {what} of similar size in x_train, got some of up to "
                    f"{largest.flat[feature]:.3g}, beside which the others are all the same: replace them where they "
                    "mark what is missing, or leave them out."
                )
        return found

    def _hides(self, x_v: np.ndarray, feature: int) -> bool:
        """Return whether nine tenths of a feature's values differ, and no longer do once they are standardized."""
        if not self.std.flat[feature] > 0:
            return False
        sample_v = x_v[:: max(1, len(x_v) // _SAMPLE)]
        distance_v = np.abs(sample_v / 2 - np.median(sample_v / 2))  # halves, whose differences do not overflow
        usual_v = sample_v[np.argsort(distance_v, kind="stable")[: 9 * len(sample_v) // 10]]
        scale, mean, std = (value.flat[feature] for value in (self.scale, self.mean, self.std))
        standardized_v = ((usual_v / scale - mean) / std).astype(np.float32)
        return len(np.unique(usual_v)) > 1 and len(np.unique(standardized_v)) == 1

    def apply(self, x: np.ndarray, where: str, what: str) -> np.ndarray:
        """Standardize values, and return them in float32.

        Args:
            x: float64, with the features on the axis that ``mean`` has them on.
            where: the start of the error message.
            what: as for :meth:`of`.

        Raises:
            TaskError: a value is too far from those of the training part for float32.
        """
        with np.errstate(over="ignore"):
            standardized: np.ndarray = (x / self.scale - self.mean) / self.std
        farthest = float(np.abs(standardized).max(initial=0.0))
        if not farthest <= FARTHEST:
            raise TaskError(
                f"{where}: expected {what} of x_train's size everywhere, got one that is {farthest:.3g} standard "
                "deviations from x_train's mean: replace it where it marks what is missing, or leave it out."
            )
        return standardized.astype(np.float32)

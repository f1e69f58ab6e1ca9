"""The norms side by side, by the kind of data; one kind a file.

Each ``compare`` takes the experiment, the batch size on one device (None for the usual one) and the number of devices,
and gives one comparison a network.
"""

from collections.abc import Callable

from gammabeta.comparison import Comparison
from gammabeta.comparisons import images, sequences, text
from gammabeta.experiment import Experiment
from gammabeta.tasks.task import Kind

COMPARE: dict[Kind, Callable[[Experiment, int | None, int], list[Comparison]]] = {
    "images": images.compare,
    "sequences": sequences.compare,
    "text": text.compare,
}

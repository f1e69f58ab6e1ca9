"""The norms side by side, by the kind of data; one kind a file.

Each ``compare`` takes the experiment, the batch size on one device (None for the usual one) and the number of devices,
and gives one comparison a network.
"""

from collections.abc import Callable

from gammabeta.lab.comparison import Comparison
from gammabeta.lab.experiment import Experiment
from gammabeta.lab.images import comparison as images
from gammabeta.lab.sequences import comparison as sequences
from gammabeta.lab.task import Kind
from gammabeta.lab.text import comparison as text

COMPARE: dict[Kind, Callable[[Experiment, int | None, int], list[Comparison]]] = {
    "images": images.compare,
    "sequences": sequences.compare,
    "text": text.compare,
}

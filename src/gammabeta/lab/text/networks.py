"""The network for text: a Transformer as a causal decoder over characters."""

import torch

from gammabeta.lab.sequences.networks import ARMS as OF_SEQUENCES
from gammabeta.lab.sequences.networks import Transformer
from gammabeta.lab.text.task import TextTask

# each arm's name in settings, and its name in legends and tables; text has no padding: "padded" is plain BatchNorm
ARMS = {**OF_SEQUENCES, "padded": "BatchNorm"}


def decoder(data: TextTask, arm: str, width: int, layers: int, context: int, seed: int) -> Transformer:
    """Build the decoder for a context of that many characters, initialized by ``seed``."""
    torch.manual_seed(seed)
    return Transformer(0, len(data.vocabulary), arm, width=width, layers=layers, longest=context)

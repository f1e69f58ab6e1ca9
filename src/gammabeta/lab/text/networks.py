"""The network for text: a Transformer as a causal decoder over characters."""

import torch

from gammabeta.lab.sequences.networks import ARMS as OF_SEQUENCES
from gammabeta.lab.sequences.networks import Placement, Transformer

# each arm's name in settings, and its name in legends and tables; text has no padding: "padded" is plain BatchNorm
ARMS = {**OF_SEQUENCES, "padded": "BatchNorm"}

# where a Transformer's norms stand, by the name in settings
PLACEMENTS = {
    "pre": Placement("pre"),
    "post": Placement("post"),
    "peri": Placement("peri"),
    "pre, qk": Placement("pre", qk=True),
}


def decoder(
    characters: int, arm: str, placement: str, shape: tuple[int, int, int], seed: int, dropout: float = 0.0
) -> Transformer:
    """Build the decoder, initialized by ``seed``.

    Args:
        characters: the size of the vocabulary.
        placement: one of ``PLACEMENTS``.
        shape: width, layers, and the context in characters.
    """
    width, layers, context = shape
    torch.manual_seed(seed)
    return Transformer(
        0, characters, arm, width=width, layers=layers, placement=PLACEMENTS[placement], longest=context,
        dropout=dropout, seed=seed,
    )  # fmt: skip

"""The claims, in the order in which they are measured: the exact ones first, then those whose trials later ones
share."""

from gammabeta.claim import Claim
from gammabeta.claims import (
    axes,
    batch_noise,
    faster_convergence,
    gradient_flow,
    higher_learning_rate,
    small_batch,
    unit_distribution,
)

CLAIMS: tuple[Claim, ...] = tuple(
    Claim.of(module)
    for module in (
        unit_distribution,
        axes,
        batch_noise,
        gradient_flow,
        faster_convergence,
        higher_learning_rate,
        small_batch,
    )
)

"""The claims, in the order in which they are measured: the exact ones first, then those whose trials later ones
share."""

from gammabeta.claim import Claim
from gammabeta.claims import (
    affine_restores,
    axes,
    batch_noise,
    faster_convergence,
    gradient_flow,
    higher_learning_rate,
    init_robustness,
    moving_average,
    noise_regularizes,
    replaces_dropout,
    shifting_data,
    small_batch,
    train_eval_mismatch,
    unit_distribution,
    weight_decay,
)

CLAIMS: tuple[Claim, ...] = tuple(
    Claim.of(module)
    for module in (
        unit_distribution,
        axes,
        batch_noise,
        moving_average,
        affine_restores,
        gradient_flow,
        faster_convergence,
        higher_learning_rate,
        init_robustness,
        noise_regularizes,
        replaces_dropout,
        small_batch,
        train_eval_mismatch,
        shifting_data,
        weight_decay,
    )
)

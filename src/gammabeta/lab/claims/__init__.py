"""The claims, in the order in which they are measured.

Exact claims come first, then those whose trials later ones share.
"""

from gammabeta.lab.claim import Claim
from gammabeta.lab.claims import (
    affine_only,
    affine_restores,
    axes,
    batch_noise,
    bn_placement,
    covariate_shift,
    faster_convergence,
    fine_tuning,
    gradient_flow,
    group_norm_needs_no_sync,
    higher_learning_rate,
    hyperparameters,
    init_robustness,
    layernorm_in_transformers,
    learned_affine,
    moving_average,
    noise_regularizes,
    optimization_first,
    replaces_dropout,
    sequences,
    sharpness,
    shifting_data,
    skip_init,
    small_batch,
    smoother_landscape,
    sync_cost,
    sync_equals_large_batch,
    train_eval_mismatch,
    unit_distribution,
    weight_decay,
)

CLAIMS: tuple[Claim, ...] = tuple(
    Claim.of(module)
    for module in (
        unit_distribution,
        axes,
        sync_equals_large_batch,
        batch_noise,
        moving_average,
        affine_restores,
        learned_affine,
        gradient_flow,
        faster_convergence,
        higher_learning_rate,
        init_robustness,
        covariate_shift,
        smoother_landscape,
        noise_regularizes,
        optimization_first,
        skip_init,
        bn_placement,
        hyperparameters,
        sharpness,
        replaces_dropout,
        small_batch,
        train_eval_mismatch,
        shifting_data,
        weight_decay,
        fine_tuning,
        affine_only,
        sequences,
        layernorm_in_transformers,
        sync_cost,
        group_norm_needs_no_sync,
    )
)

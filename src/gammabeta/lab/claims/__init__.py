"""The claims, in the order in which they are measured.

Exact claims come first, then those whose trials later ones share.
"""

from gammabeta.lab.claim import Claim
from gammabeta.lab.claims import (
    affine_only,
    affine_restores,
    axes,
    batch_noise,
    covariate_shift,
    faster_convergence,
    few_shot,
    fine_tuning,
    gradient_flow,
    group_norm_needs_no_sync,
    higher_learning_rate,
    init_families,
    layernorm_in_transformers,
    moving_average,
    noise_regularizes,
    online_stream,
    replaces_dropout,
    sequences,
    small_batch,
    smoother_landscape,
    sync_cost,
    sync_equals_large_batch,
    test_time_statistics,
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
        gradient_flow,
        faster_convergence,
        higher_learning_rate,
        init_families,
        covariate_shift,
        smoother_landscape,
        noise_regularizes,
        replaces_dropout,
        small_batch,
        train_eval_mismatch,
        test_time_statistics,
        online_stream,
        weight_decay,
        fine_tuning,
        affine_only,
        few_shot,
        sequences,
        layernorm_in_transformers,
        sync_cost,
        group_norm_needs_no_sync,
    )
)

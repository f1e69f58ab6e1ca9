"""The claims that a first look and a study at scale measure, and what took the place of removed claims."""

# What a first look measures beside the recommendations.
FIRST_LOOK = (
    "batch_noise", "affine_restores", "gradient_flow", "faster_convergence", "higher_learning_rate",
    "noise_regularizes", "small_batch", "train_eval_mismatch", "affine_only", "layernorm_in_transformers",
    "weight_decay", "axes",
)  # fmt: skip
# What took the place of claims that are no longer measured; docs/claims_history.md says why.
REPLACED = {"init_robustness": "init_families", "shifting_data": "online_stream and few_shot"}
# What a study at scale measures beside the recommendation: fixed beforehand, of a cost that large data allow.
AT_SCALE = (
    "batch_noise", "gradient_flow", "faster_convergence", "higher_learning_rate", "noise_regularizes",
    "train_eval_mismatch", "sequences", "layernorm_in_transformers",
)  # fmt: skip
# In place of all claims, by the option.
SETS = {"first_look": FIRST_LOOK, "at_scale": AT_SCALE}

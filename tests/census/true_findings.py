"""Loud findings on healthy architectures that are true, each with the reason. A person reviewed every one."""

from __future__ import annotations

from fnmatch import fnmatchcase

# Globs on "library name", code, reason.
TRUE: tuple[tuple[str, str, str], ...] = (
    (
        "transformers mobilenet_v[12]",
        "GB305",
        "its configuration has TensorFlow's momentum of 0.997, which torch takes for a share of the new batch",
    ),
    (
        "transformers efficientnet",
        "GB305",
        "its configuration has TensorFlow's momentum of 0.99, which torch takes for a share of the new batch",
    ),
    (
        "transformers efficientnet",
        "GB309",
        "weights start at a standard deviation of 0.02 while ε is 0.001: variances fall to 1e-44 and its outputs are "
        "the same for every image, in training mode and recalibrated too",
    ),
    (
        "torchvision segmentation.deeplabv3_*",
        "GB302",
        "the dropout of its head comes before a convolution and a BatchNorm, whose input has 2.3 times the variance in "
        "training that it has in evaluation",
    ),
    (
        "segmentation_models_pytorch DeepLabV3*",
        "GB302",
        "as torchvision's DeepLabV3: the dropout of 0.5 behind its pooled branches comes before a convolution and a "
        "BatchNorm, whose input has 2.4 times the variance in training",
    ),
    (
        "torchvision mnasnet0_5",
        "GB109",
        "its momentum is 0.0003: after 30 steps the statistics are 0.99 of the way still at 0 and 1",
    ),
    (
        "recipe adversaries_with_batch_norm",
        "GB206",
        "real and generated images go through the critic apart, so its running statistics are a mixture of both",
    ),
    (
        "recipe accumulation_with_batch_norm",
        "GB204",
        "a BatchNorm sees a quarter of the batch at a time, and moves its statistics four times per step",
    ),
    (
        "recipe checkpointing_of_torch_s_batch_norms",
        "GB111",
        "the second forward moves the running statistics again",
    ),
    (
        "recipe backbone_frozen_by_gradients_alone",
        "GB101",
        "the statistics of the frozen backbone move at every step",
    ),
    (
        "recipe backbone_in_no_optimizer",
        "GB101",
        "the optimizer has the head alone, and the statistics of the backbone move at every step",
    ),
    (
        "recipe evaluation_for_the_rest_of_training",
        "GB114",
        "train() is forgotten after the first validation, and the rest of training runs in evaluation mode",
    ),
)


def reason_of(name: str, code: str) -> str | None:
    """Return why a finding is true of an architecture; None if the list does not have it."""
    return next((reason for glob, of, reason in TRUE if of == code and fnmatchcase(name, glob)), None)

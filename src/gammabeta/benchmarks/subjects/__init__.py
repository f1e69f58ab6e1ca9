"""The subjects of `gammabeta bench`, one per file, in the order in which they are measured."""

from gammabeta.benchmarks.contest import Subject
from gammabeta.benchmarks.subjects import (
    channel_norms,
    compiled_step,
    folding,
    gpu_channel_norms,
    gpu_sample_norms,
    gpu_training_step,
    sample_norms,
    small_inputs,
    study_speed,
    sweep,
    synced,
    tails,
    training_step,
    watching,
)

MODULES = (
    channel_norms,
    folding,
    sample_norms,
    small_inputs,
    sweep,
    tails,
    training_step,
    compiled_step,
    synced,
    watching,
    study_speed,
    gpu_channel_norms,
    gpu_sample_norms,
    gpu_training_step,
)
SUBJECTS: tuple[Subject, ...] = tuple(Subject.of(module) for module in MODULES)

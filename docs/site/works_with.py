"""The page of what gammabeta works with: each row names the test that shows it."""

from typing import NamedTuple


class Row(NamedTuple):
    """What works: with what, how, and the test, as pytest names it without parameters."""

    what: str
    how: str
    test: str


PYTORCH = (
    Row(
        "torch.nn's state_dicts",
        "the same keys, shapes and dtypes, both ways",
        "peers/test_modules.py::test_saved_pickled_and_copied",
    ),
    Row(
        "autocast",
        "float32 statistics in a block of 16 bits",
        "test_transforms.py::test_a_block_under_autocast_trains_with_float32_statistics",
    ),
    Row(
        "torch.compile", "without a graph break, in any layout", "test_compile.py::test_inductor_without_a_graph_break"
    ),
    Row(
        "torch.compile, inputs of many sizes",
        "no more graphs than torch's own norms need",
        "integrations/test_compiled.py::test_twenty_input_sizes_need_no_more_graphs_than_torch_s",
    ),
    Row(
        "torch.compile with `compile_options()`",
        "norm, sum and relu become one call",
        "test_compile_options.py::test_norm_sum_and_relu_of_a_residual_network_are_one_call",
    ),
    Row(
        "torch.export",
        "torch's standard operations, with dynamic sizes",
        "integrations/test_graphs.py::test_exported_with_dynamic_sizes",
    ),
    Row("AOTInductor", "compiled ahead of time", "integrations/test_graphs.py::test_aot_inductor"),
    Row("torch.jit.trace", "traced, saved and loaded", "integrations/test_graphs.py::test_traced_saved_and_loaded"),
    Row(
        "torch.fx, torch.ao",
        "after `release`",
        "layers/test_converters.py::test_torch_s_fusion_by_symbolic_tracing_of_a_released_model",
    ),
    Row(
        "torch.func: grad, vmap, jacrev, functional_call",
        "as autograd computes it",
        "test_transforms.py::test_vmap_equals_loop",
    ),
    Row("double backward", "Hessians, gradient penalties", "test_transforms.py::test_hessian_equals_double_backward"),
    Row(
        "activation checkpointing",
        "running statistics move once",
        "integrations/test_checkpointing.py::test_a_checkpointed_model_moves_its_statistics_once",
    ),
    Row(
        "nn.TransformerEncoder",
        "adopted, in training and evaluation",
        "integrations/test_transformer_encoder.py::test_adopted_in_evaluation_and_training",
    ),
    Row(
        "NestedTensor",
        "LayerNorm and RMSNorm, jagged and strided",
        "subclasses/test_nested.py::test_training_is_that_of_the_samples_one_by_one",
    ),
    Row(
        "SWA and EMA: AveragedModel",
        "averages that miss their statistics are found",
        "diagnostics/rules/test_averaged_model_statistics.py::",
    ),
)
PROCESSES = (
    Row(
        "DistributedDataParallel",
        "with `Synced` as one process on the whole batch, also over gloo",
        "distributed/test_data_parallel.py::test_training_is_that_of_one_process_on_the_whole_batch",
    ),
    Row(
        "FSDP2 with tensor parallelism",
        "a block trains as torch's does in one process",
        "distributed/test_dtensor.py::test_a_block_under_fsdp2_and_tensor_parallel_trains_as_torchs_in_one_process",
    ),
    Row(
        "DTensor",
        "every norm and every source of statistics",
        "distributed/test_dtensor.py::test_every_source_of_statistics_takes_a_dtensor",
    ),
    Row(
        "nn.SyncBatchNorm",
        "adopted and released with its group",
        "distributed/test_surgery.py::test_sync_batch_norm_keeps_its_group_there_and_back",
    ),
    Row(
        "torch.compile of synchronized layers",
        "compiled equals eager",
        "distributed/test_compile.py::test_compiled_is_eager",
    ),
)
LIBRARIES = (
    Row(
        "timm",
        "BatchNorm, BatchNormAct2d, frozen and synchronized ones are adopted; `norm_layer=gb.BatchNorm2d`",
        "surgery/test_timm.py::test_families_that_take_a_class_get_ours",
    ),
    Row(
        "timm, torchvision and transformers: sixty real models",
        "`fold` gives the same outputs",
        "surgery/test_zoo.py::test_a_real_model_is_folded_right",
    ),
    Row(
        "transformers",
        "Llama's, T5's, Gemma's and other norms are adopted by what they compute",
        "surgery/test_transformers_norms.py::test_every_norm_is_adopted",
    ),
    Row(
        "some 270 healthy architectures of five libraries",
        "`check` raises no false alarm",
        "census/test_architectures.py::test_a_healthy_architecture_raises_no_false_alarm",
    ),
    Row(
        "Opacus", "gradients of each sample, and a private step", "layers/test_opacus.py::test_a_private_training_step"
    ),
    Row(
        "thop, ptflops",
        "norms of adopted models are counted",
        "layers/test_class_tables.py::test_counters_count_the_norms_of_adopted_models",
    ),
    Row(
        "converters of others",
        "refused where an activation would go, with what to do",
        "layers/test_converters.py::test_with_an_activation",
    ),
)
TRAINING = (
    Row(
        "Lightning",
        "`lightning_callback` watches step by step",
        "monitoring/test_callbacks.py::test_lightning_is_watched_step_by_step_and_left_without_hooks",
    ),
    Row(
        "transformers.Trainer",
        "`transformers_callback` watches step by step",
        "monitoring/test_callbacks.py::test_transformers_is_watched_step_by_step_and_left_without_hooks",
    ),
    Row("TensorBoard", "`log=writer.add_scalar`", "monitoring/test_watch.py::test_tensorboard_takes_the_numbers"),
    Row(
        "some 50 recipes of training",
        "`watch` raises no false alarm",
        "census/test_recipes.py::test_a_recipe_raises_no_false_alarm_and_its_fault_is_said",
    ),
)
FORMATS = (
    Row(
        "ONNX, ONNX Runtime",
        "exported in evaluation, the same outputs",
        "test_compile.py::test_onnxruntime_gives_the_same_in_evaluation",
    ),
    Row(
        "safetensors, torch.save, pickles of arrays",
        "`gammabeta check` reads them and runs nothing in them",
        "diagnostics/test_checkpoint_kinds.py::test_a_checkpoint_is_read_whatever_its_name",
    ),
    Row(
        "SARIF 2.1.0, GitHub code scanning",
        "`--format sarif`",
        "cli/test_sarif.py::test_every_rule_and_odd_texts_are_taken",
    ),
)
DEVICES = (
    Row(
        "CPUs with AVX2, AVX-512 or neither",
        "one extension, its loops once an instruction set",
        "kernels/cpu/test_instruction_sets.py::",
    ),
    Row(
        "CUDA",
        "Triton kernels that compile; they serve once `gammabeta verify` has passed on the GPU",
        "kernels/cuda/test_compiled.py::test_every_kernel_is_compiled",
    ),
)
SECTIONS = {
    "PyTorch": PYTORCH,
    "Several processes": PROCESSES,
    "Libraries of models and tools": LIBRARIES,
    "Training loops": TRAINING,
    "Files and formats": FORMATS,
    "Devices": DEVICES,
}


def works_with_pages() -> dict[str, str]:
    """Return the page by its place on the site."""
    parts = [
        "# Works with",
        "Each row names the test that shows it, in `tests/`. A test whose library is not installed is skipped. What\n"
        "does not work is said in {doc}`the recipe on other libraries <recipes/other-libraries>`.",
    ]
    for title, rows in SECTIONS.items():
        lines = [f"| {row.what} | {row.how} | `{row.test.removesuffix('::')}` |" for row in rows]
        parts += [f"## {title}", "\n".join(["| with | how | test |", "|---|---|---|", *lines])]
    return {"works-with.md": "\n\n".join(parts) + "\n"}

"""What gammabeta uses of torch's private API: that it is there, does what we take it for, and is used in one place."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.autograd import forward_ad
from torch.distributed.tensor import DTensor

import gammabeta
from gammabeta import _torch_private as private

SOURCE = Path(gammabeta.__file__).parent
# Parents of public classes, and what kernels and benchmarks need (see the module).
BASES = re.compile(r"nn\.modules\.\w+\._\w+|nn\.Module\._\w+|torch\.__version__|torch\._check")
OWN = ("kernels/cuda/", "benchmarks/", "_torch_private.py")


def private_uses(path):
    """The private names of torch that a module imports or reads, by their dotted paths."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "torch":
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "torch")
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_other_module_reaches_into_torch(path):
    if path.relative_to(SOURCE).as_posix().startswith(OWN):
        return
    for name in private_uses(path):
        if name.split(".")[0] in ("torch", "nn", "dist", "forward_ad"):
            parts = [part for part in name.split(".")[1:] if part.startswith("_") and not part.startswith("__")]
            allowed = BASES.search(name) or name.startswith("torch.ops._c10d_functional")
            assert not parts or allowed, f"{name}: take it from gammabeta._torch_private"


def test_what_is_gone_is_named():
    text = rf"^gammabeta: expected math\._gone, which torch {re.escape(torch.__version__)} does not have: it is needed"
    import math

    with pytest.raises(ImportError, match=text):
        private._required(math, "_gone", "for this test")


def test_transforms_are_seen():
    seen = []
    torch.func.vmap(lambda x: (seen.append((private.transforms_active(), private.is_wrapped(x))), x)[1])(torch.ones(2))
    assert seen == [(True, True)]
    assert not private.transforms_active()
    assert not private.is_wrapped(torch.ones(2))


def test_forward_mode_and_a_backward_are_seen():
    assert not private.forward_mode_active()
    with forward_ad.dual_level():
        assert private.forward_mode_active()
    x, seen = torch.ones(2, requires_grad=True), []
    x.register_hook(lambda _: seen.append(private.backward_running()))
    (x * 2).sum().backward()
    assert seen == [True]
    assert not private.backward_running()


def test_schemas_storages_and_kernels_are_read():
    parsed = private.parse_schema("gammabeta::f(Tensor x, float eps) -> Tensor")
    assert [argument.name for argument in parsed.arguments] == ["x", "eps"]
    assert private.has_storage(torch.ones(2))
    assert private.has_dispatch_kernel("aten::mul.Tensor", "CPU")
    assert not private.has_dispatch_kernel("gammabeta::channel_norm_forward", "XPU")
    assert torch.Tensor.__torch_dispatch__ is private.no_torch_dispatch


def test_modes_see_operations_except_where_they_are_disabled():
    seen = []

    class Mode(private.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Mode():
        torch.ones(2) + 1
        before = len(seen)
        assert before > 0
        with private.disable_current_modes():
            torch.ones(2) + 1
        assert len(seen) == before


def graphs_of_a_compiled_add(mode):
    """How many graphs torch.compile makes of an addition under a mode, whose own code adds too."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    with mode():
        out = torch.compile(torch.add, backend=backend)(torch.ones(5), torch.ones(5))
    assert out.equal(torch.full((5,), 3.0))
    return len(graphs)


def test_the_compiler_is_kept_out_of_a_mode_as_torch_keeps_it_out():
    def dispatch(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return out + 1 if "add" in str(func) else out

    def mode(base, **more):
        return type("Mode", (base,), {"__torch_dispatch__": dispatch, **more})

    torchs = torch.utils._python_dispatch.TorchDispatchMode
    traced = mode(torchs, _should_skip_dynamo=classmethod(lambda cls: False))
    kept_out = graphs_of_a_compiled_add(mode(torchs))
    assert graphs_of_a_compiled_add(traced) > kept_out
    ours = mode(private.TorchDispatchMode)
    assert [graphs_of_a_compiled_add(ours) for _ in range(2)] == [kept_out] * 2
    assert ours.__torch_dispatch__.__code__ == mode(torchs).__torch_dispatch__.__code__


def test_a_constant_is_marked_as_torch_marks_it():
    def ours():
        calls.append("ours")
        return 3.0

    def torchs():
        return 3.0

    calls = []
    torch.compiler.assume_constant_result(torchs)
    assert private.constant_in_graphs(ours) is ours
    assert vars(ours) == vars(torchs) != {}
    compiled = torch.compile(lambda x: x * ours(), fullgraph=True, backend="eager")
    assert [float(compiled(torch.ones(()))) for _ in range(2)] == [3.0, 3.0]
    assert calls == ["ours"]


def test_whether_the_compiler_is_loaded_is_told_without_loading_it():
    script = (
        "import sys\nfrom gammabeta._torch_private import compiler_loaded\n"
        "print(compiler_loaded(), 'torch._dynamo' in sys.modules)\nimport torch._dynamo\nprint(compiler_loaded())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout == "False False\nTrue\n", done.stderr


def test_nested_tensors_are_read():
    nested = torch.nested.nested_tensor([torch.ones(3, 4), torch.ones(5, 4)], layout=torch.jagged)
    assert private.ragged_axis(nested) == 1
    assert {type(length) for length in private.known_lengths(nested)} <= {int, type(None)}


def test_process_groups_and_their_stores_are_found(tmp_path):
    if dist.is_initialized():
        pytest.skip("this process has a group already")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/init", rank=0, world_size=1)
    try:
        name = dist.group.WORLD.group_name
        assert private.process_group(name) is dist.group.WORLD
        assert dist.group.WORLD in private.known_process_groups()
        for store in (private.default_store(), private.store_of(dist.group.WORLD)):
            store.set("key", "value")
            assert store.get("key") == b"value"
        assert private.replicates_implicitly(DTensor) is False
        private.declare_collectives()
    finally:
        dist.destroy_process_group()
    assert private.local_part(torch.ones(2)).equal(torch.ones(2))


def test_pickled_tensors_are_rebuilt_by_functions_that_are_there():
    storage = torch.UntypedStorage(8)
    typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
    made = private.rebuild_module._rebuild_tensor_v2(typed, 0, (2,), (1,), False, {})
    assert made.shape == (2,)
    assert {"_rebuild_tensor", "_rebuild_parameter", "_rebuild_qtensor", "_rebuild_sparse_tensor"} <= set(
        vars(private.rebuild_module)
    )

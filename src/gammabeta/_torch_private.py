"""Everything of torch's private API that gammabeta uses: each with its reason.

torch promises nothing about these names. Where one is gone, importing gammabeta raises an ImportError that says which
and why it is needed; what only processes, DTensors or NestedTensors need raises an AttributeError where it is used. No
default would be right: without them a norm could give a wrong gradient or move its statistics twice, silently.
`tests/test_torch_private.py` tests each name, and that no other module reaches into torch.

Private names stay where they are used in these cases only:

    base classes       nn.modules.batchnorm._NormBase and _BatchNorm, instancenorm._InstanceNorm, conv._ConvNd and
                       _ConvTransposeNd, dropout._DropoutNd: parents of public classes, for isinstance and subclassing
    hooks and state    _parameters, _buffers, _modules, _forward_hooks and the like of a Module: what copying and
                       pickling a module rely on
    kernels/cuda       torch._library.triton, torch._subclasses: how torch.compile learns of Triton kernels
    benchmarks         torch._dynamo.reset, torch._inductor.config, torch._functorch.config: settings of measurements
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _python_dispatch, _pytree

_F = TypeVar("_F", bound=Callable[..., Any])


def _required(owner: Any, name: str, reason: str) -> Any:
    """Return what torch has under that name.

    Raises:
        ImportError: it has nothing.
    """
    found = getattr(owner, name, None)
    if found is None:
        raise ImportError(
            f"gammabeta: expected {owner.__name__}.{name}, which torch {torch.__version__} does not have: it is needed "
            f"{reason}. Install a version of torch that gammabeta is tested with."
        )
    return found


# The functions themselves, not wrappers: Dynamo knows them by identity, and small calls pay for each call.

transforms_active: Callable[[], bool] = _required(
    torch._C, "_are_functorch_transforms_active", "to leave calls inside torch.func transforms to plain operations"
)
"""Whether a torch.func transform is active: vmap, grad, jvp and their like have no rule for our ops."""

is_wrapped: Callable[[Tensor], bool] = _required(
    torch._C._functorch, "is_functorch_wrapped_tensor", "to refuse running statistics that a transform has captured"
)
"""Whether a tensor belongs to a torch.func transform."""

parse_schema = _required(torch._C, "parse_schema", "to make the checks of an op from its schema")
"""The arguments of an op from the text of its schema."""

has_storage: Callable[[Tensor], bool] = _required(torch._C, "_has_storage", "to refuse tensors whose memory was freed")
"""Whether a tensor has memory of its own to check. Fakes and functional tensors have none."""

no_torch_dispatch = _required(
    torch._C, "_disabled_torch_dispatch_impl", "to tell classes of tensors with a __torch_dispatch__ of their own"
)
"""The `__torch_dispatch__` of a class that has none of its own."""

rebuild_module: Any = _required(torch, "_utils", "to read the tensors of a pickle without running code in it")
"""The functions by which a pickled tensor is built; pickles name them by this module."""

disable_current_modes = _required(
    _python_dispatch, "_disable_current_modes", "to keep measurements out of what is observed"
)
"""A context in which no dispatch mode sees the operations: a measurement is no part of what is observed."""

storage_address: Callable[[torch.UntypedStorage], int] = torch.UntypedStorage._cdata.__get__
"""The address of a storage, by which storages are told apart while they live."""

tree_leaves, tree_map = _pytree.tree_leaves, _pytree.tree_map
"""All values in nested containers, as torch's compilers and exporters walk them."""


# Asked for only when a norm runs, so that they are looked for here.
_required(forward_ad, "_current_level", "to leave forward-mode AD to plain operations")
_required(torch._C, "_current_graph_task_id", "to move statistics once under activation checkpointing")
_required(torch._C, "_dispatch_has_kernel_for_dispatch_key", "to know for which devices there are kernels")
_required(torch, "_disable_dynamo", "to keep the compiler out of the modes by which a model is observed")


def forward_mode_active() -> bool:
    """Return whether forward-mode AD is active. Its tangents pass no autograd Function of ours."""
    return forward_ad._current_level >= 0


def backward_running() -> bool:
    """Return whether this thread is inside a backward, where a forward may be a recomputation."""
    return torch._C._current_graph_task_id() != -1


def top_saved_tensor_hooks() -> tuple[Any, Any] | None:
    """Return the pack and unpack hooks that get the tensors that are saved now; None where there are none."""
    hooks: tuple[Any, Any] | None = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks


def saved_tensor_hooks_allowed() -> bool:
    """Return whether hooks on saved tensors may be set: not inside of `disable_saved_tensors_hooks`."""
    return bool(torch._C._autograd._saved_tensors_hooks_is_enabled())  # type: ignore[attr-defined]


class Inductor(NamedTuple):
    """What a pass over Inductor's graphs is made of."""

    CustomGraphPass: Any
    get_hash_for_files: Any
    stable_topological_sort: Any


def inductor() -> Inductor:
    """Import Inductor, and return what a pass over its graphs is made of."""
    from torch._inductor import custom_graph_pass, pattern_matcher

    return Inductor(
        custom_graph_pass.CustomGraphPass,
        custom_graph_pass.get_hash_for_files,
        pattern_matcher.stable_topological_sort,
    )


def has_dispatch_kernel(op: str, key: str) -> bool:
    """Return whether an op has a kernel registered for a dispatch key, such as "CPU"."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(op, key)


# The compiler, torch._dynamo, is 886 modules with what it imports, and takes longer to import than the rest of torch.
# Most processes compile nothing, so gammabeta loads it nowhere. torch loads it for a decorator or a mode, too.


def compiler_loaded() -> bool:
    """Return whether torch's compiler is imported. Where it is not, nothing is compiled."""
    return "_dynamo" in vars(torch)  # hasattr would import it; sys.modules has it while its import still runs


def constant_in_graphs(function: _F) -> _F:
    """Mark a function whose result a compiled graph may keep, as `torch.compiler.assume_constant_result` does.

    That decorator sets this mark, and imports the compiler. A torch that goes by another mark would trace the function,
    and say where it cannot.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


class TorchDispatchMode(_python_dispatch.TorchDispatchMode):
    """A mode that sees the operations below autograd: what a model does is observed by it.

    torch keeps the compiler out of a mode's own code, by a wrapper that imports it at the first operation. This class
    puts the same wrapper on at the first operation for which the compiler is loaded.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        plain = cls.__torch_dispatch__

        def dispatch(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not compiler_loaded():
                return plain(self, *args, **kwargs)
            cls.__torch_dispatch__ = torch._disable_dynamo(plain)  # type: ignore[method-assign]
            return cls.__torch_dispatch__(self, *args, **kwargs)

        cls.__torch_dispatch__ = dispatch  # type: ignore[method-assign]


def process_group(name: str) -> dist.ProcessGroup:
    """Return the process group of that name: layers keep names, since groups can be neither copied nor pickled."""
    return dist.distributed_c10d._resolve_process_group(name)  # type: ignore[arg-type]


def known_process_groups() -> list[dist.ProcessGroup]:
    """Return the process groups that this process has made and is in."""
    known = dist.distributed_c10d._world.pg_group_ranks
    return [group for group in known if isinstance(group, dist.ProcessGroup)]  # a mark stands for the rest


def store_of(group: dist.ProcessGroup) -> Any:
    """Return the store of a process group, by which processes leave word without waiting for each other."""
    return dist.distributed_c10d._get_process_group_store(group)


def default_store() -> Any:
    """Return the store of the default process group."""
    return dist.distributed_c10d._get_default_store()


def declare_collectives() -> None:
    """Declare to compilers what the functional collectives return; they do not compile without it."""
    import torch.distributed._functional_collectives  # noqa: F401


def replicates_implicitly(dtensor: Any) -> bool:
    """Return whether operations take plain tensors for DTensors that are the same on every process."""
    return bool(dtensor._op_dispatcher._allow_implicit_replication)


def ragged_axis(nested: Any) -> int:
    """Return the axis of a jagged NestedTensor in which its samples differ."""
    return int(nested._ragged_idx)


def known_lengths(nested: Any) -> tuple[int | None, int | None]:
    """Return the shortest and the longest length of a jagged NestedTensor's samples, as far as it has computed them."""
    return nested._maybe_min_seqlen, nested._maybe_max_seqlen


def local_part(tensor: Tensor) -> Tensor:
    """Return this process's part of a DTensor without autograd, or a plain tensor itself."""
    part: Tensor = getattr(tensor, "_local_tensor", tensor)
    return part

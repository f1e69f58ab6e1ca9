"""The kernels. Importing this package registers them under the schemas of `ops.py`, for the CPU and for CUDA.

Those for the CPU are one compiled extension, `_cpu`, that the build leaves in this folder (`setup.py`). Without it
everything runs all the same, by torch's own ops and the reference; `missing` says why it is not there, None where it
is. Those for CUDA are written in Triton (`cuda.py`), which are imported when the first CUDA tensor comes.

Environment variable GAMMABETA_KERNELS, read once: `0` leaves the kernels out on purpose, without a warning; `1` asks
for them, so that their lack is an ImportError (of those for CUDA, a RuntimeError when a CUDA tensor comes); unset,
they are taken where they are there, and one RuntimeWarning for the process says that they are not.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import warnings

import torch

from gammabeta.activations import ACTIVATIONS
from gammabeta.kernels.cuda import register as cuda

EXTENSION = f"{__name__}._cpu"


def _load() -> str | None:
    """Load the extension; why it is not there, None where it is."""
    if os.environ.get("GAMMABETA_KERNELS") == "0":
        return "switched off by GAMMABETA_KERNELS=0"
    try:
        importlib.import_module(EXTENSION)
    except ModuleNotFoundError as error:
        if error.name != EXTENSION:
            return f"built, and they do not load: {error}"
        return "not built: there was no torch or no working C++ compiler when gammabeta was installed"
    except ImportError as error:
        return f"built, and they do not load beside torch {torch.__version__}: {error}"
    if hasattr(torch.ops.gammabeta, "cpu_activations"):
        _check_activations(tuple(torch.ops.gammabeta.cpu_activations().split(",")))
    return None


def _check_activations(built: tuple[str, ...]) -> None:
    """Compare the activations that the extension was built with to `activations.TABLE`.

    Raises:
        ImportError: they differ. The kernels are registered by now, and would refuse one that they do not know.
    """
    if built != ACTIVATIONS:
        raise ImportError(
            f"gammabeta: expected CPU kernels for the activations {', '.join(ACTIVATIONS)}, got an extension built for "
            f"{', '.join(built)}: install gammabeta again, or implement the new activation in kernels/cpu."
        )


def _tell(reason: str) -> None:
    """Raise or warn, as GAMMABETA_KERNELS and the process ask."""
    wanted = os.environ.get("GAMMABETA_KERNELS")
    cure = "Install gammabeta again with pip's --no-build-isolation, where torch and g++ or clang++ are there"
    if wanted == "1":
        raise ImportError(
            f"gammabeta: GAMMABETA_KERNELS=1 asks for the native CPU kernels, and they are {reason}. {cure}."
        )
    # A worker process says nothing: the process that started it has.
    if wanted != "0" and multiprocessing.parent_process() is None:
        warnings.warn(
            f"gammabeta: the native CPU kernels are {reason}. Results are right all the same, by torch's own ops and "
            f"the reference in plain torch, and come slower. {cure}; or set GAMMABETA_KERNELS=0 to go without them.",
            RuntimeWarning,
            stacklevel=2,
        )


# Below how many elements of x torch's op runs: it must be both as accurate and faster, forward and backward together. A
# call of ours costs some 10 µs more. Only RMSNorm is accurate enough (docs/conventions.md), which torch composes of
# elementwise operations. The others lose too much, in some layout, forward or backward, once the mean is 10 times the
# spread; 0: never.
WORTH_IT = {"batch_norm": 0, "instance_norm": 0, "group_norm": 0, "layer_norm": 0, "rms_norm": 4096}
if "GAMMABETA_WORTH_IT" in os.environ:  # for tests: who computes may change nothing but the time
    WORTH_IT = dict.fromkeys(WORTH_IT, int(os.environ["GAMMABETA_WORTH_IT"]))

# The same for CUDA, in all dtypes. Both are unmeasured there, how accurate torch's ops are and how fast. Derived from
# torch's launch, a few µs on the host, and ours, some tens; at 4.3 TB/s a norm of 2²² values in float32 (three tensors'
# traffic, 50 MB) takes 12 µs, so that the host no longer counts.
WORTH_IT_ON_CUDA = 1 << 22


def leaves_to_torch(norm: str, x: torch.Tensor) -> bool:
    """Whether torch's op takes the kernel's place, where both can do it: accurate and faster for x of that size."""
    if x.is_cuda:
        return x.numel() < WORTH_IT_ON_CUDA
    return x.numel() < WORTH_IT[norm] and (x.dtype == torch.float32 or x.dtype == torch.float64)


def leaves_compiled_to_torch(norm: str, x: torch.Tensor) -> bool:
    """The same in compiled code, whatever the size: what fuses there with what is around it, where that is unmeasured.

    Not on a CPU: there the code that is generated adds up the gradients of parameters one by one. Over 16,384 rows of
    one value that of LayerNorm's bias loses 540 ulp, by our kernel 5.
    """
    return x.is_cuda and norm in ("layer_norm", "rms_norm")


if torch.version.cuda is not None and os.environ.get("GAMMABETA_KERNELS") != "0":
    cuda.register()
missing: str | None = _load()
if missing is not None:
    _tell(missing)

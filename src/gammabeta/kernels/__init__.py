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

from gammabeta.kernels import cuda

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
    return None


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


# From how many elements of x on the kernel is as fast as torch's op or faster, forward and backward together, in
# float32 and float64. A call of ours costs some 10 µs more, and in the caches torch's ops are as fast; its RMSNorm is
# composed.
WORTH_IT = {
    "batch_norm": 1 << 16, "instance_norm": 1 << 19, "group_norm": 1 << 20, "layer_norm": 1 << 19, "rms_norm": 4096,
}  # fmt: skip
if "GAMMABETA_WORTH_IT" in os.environ:  # for tests: who computes may change nothing but the time
    WORTH_IT = dict.fromkeys(WORTH_IT, int(os.environ["GAMMABETA_WORTH_IT"]))

# The same for CUDA, in all dtypes. Unmeasured: derived from torch's launch, a few µs on the host, and ours, some
# tens; at 4.3 TB/s a norm of 2²² values in float32 (three tensors' traffic, 50 MB) takes 12 µs, so that the host no
# longer counts.
WORTH_IT_ON_CUDA = 1 << 22

# Values of a statistic up to which torch's BatchNorm adds well enough: over more its float32 sums lose a variance that
# is small beside the mean (half of it is gone at 4096 values, a mean of 10⁶ and a spread of 1).
SUMMED_WELL = 1024


def leaves_to_torch(norm: str, x: torch.Tensor) -> bool:
    """Whether torch's op is faster than the kernel, where both can do it. In 16 bits torch's is wrong on a CPU."""
    elements, dtype = x.numel(), x.dtype
    if x.is_cuda:
        return elements < WORTH_IT_ON_CUDA
    if elements >= WORTH_IT[norm] or (dtype != torch.float32 and dtype != torch.float64):
        return False
    return norm != "batch_norm" or elements <= SUMMED_WELL * x.shape[1]


def leaves_compiled_to_torch(norm: str, x: torch.Tensor) -> bool:
    """The same in compiled code, whatever the size: torch's ops, which a compiler fuses with what is around them.

    Not BatchNorm, whose sums are as in eager mode where a backend does not decompose it, nor GroupNorm and InstanceNorm
    in channels_last, of which torch's op takes E[x²] − E[x]².
    """
    if norm == "batch_norm":
        return False
    return norm not in ("group_norm", "instance_norm") or x.is_contiguous()


if torch.version.cuda is not None and os.environ.get("GAMMABETA_KERNELS") != "0":
    cuda.register()
missing: str | None = _load()
if missing is not None:
    _tell(missing)

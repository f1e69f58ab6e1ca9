"""The native kernels. Importing this package registers them under the schemas of `ops.py`, for the CPU and for CUDA.

The CPU kernels are one compiled extension, `_cpu`, built into this folder (`setup.py`). Without it everything still
runs, on torch's own ops and the reference; `missing` says why the extension is missing, None where it is loaded. The
CUDA kernels are written in Triton (`cuda/`) and imported when the first CUDA tensor comes.

The environment variable GAMMABETA_KERNELS is read once:

- `0` leaves the kernels out, without a warning.
- `1` requires them: a missing CPU kernel is an ImportError, a missing CUDA kernel a RuntimeError at the first CUDA
  tensor.
- Unset, they are used where they are available and not found wanting: the CPU kernels unless `gammabeta verify` has
  failed here, the CUDA kernels once it has passed (`certificate.py`). If not, there is one RuntimeWarning per process.
"""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import os
import platform
import warnings
from pathlib import Path

import torch

from gammabeta.activations import ACTIVATIONS
from gammabeta.kernels import certificate
from gammabeta.kernels.cuda import register

EXTENSION = f"{__name__}._cpu"


def _load() -> str | None:
    """Load the extension. Return why it is missing, None where it is loaded."""
    if os.environ.get("GAMMABETA_KERNELS") == "0":
        return "switched off by GAMMABETA_KERNELS=0"
    if os.environ.get("GAMMABETA_KERNELS") != "1" and (failed := failure()) is not None:
        first = failed.failures[0]["case"] if failed.failures else "unknown"
        return f"out of service: they failed `gammabeta verify` here on {failed.when[:10]}, first in {first}"
    try:
        importlib.import_module(EXTENSION)
    except ModuleNotFoundError as error:
        if error.name != EXTENSION:
            return f"built, but do not load: {error}"
        return "not built: there was no torch or no working C++ compiler when gammabeta was installed"
    except ImportError as error:
        return f"built, but do not load with torch {torch.__version__}: {error}"
    built = torch.ops.gammabeta.cpu_activations() if hasattr(torch.ops.gammabeta, "cpu_activations") else "unknown ones"
    _check_activations(tuple(built.split(",")))
    return None


def built() -> bool:
    """Return whether the extension is there, loaded or not."""
    return importlib.util.find_spec(EXTENSION) is not None


def identity() -> certificate.Identity:
    """Return what a certificate of the native kernels is about. It reads the extension's file."""
    found = importlib.util.find_spec(EXTENSION)
    files = [] if found is None or found.origin is None else [Path(found.origin)]
    return certificate.Identity("native", _processor(), {"torch": torch.__version__}, certificate.digest_of(files))


def failure() -> certificate.Certificate | None:
    """Return the certificate by which the native kernels are out of service here, None where there is none."""
    for found in certificate.written("native"):
        if not found.passed and found.identity == identity():
            return found
    return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


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
    """Raise or warn, depending on GAMMABETA_KERNELS and the process."""
    wanted = os.environ.get("GAMMABETA_KERNELS")
    cure = (
        "Where torch and g++ or clang++ are installed, pip install --force-reinstall --no-deps --no-cache-dir "
        "gammabeta (in a clone . in place of gammabeta) builds them"
    )
    if reason.startswith("out of service"):
        cure = "Please report it with what `gammabeta verify --report` prints"
    if wanted == "1":
        raise ImportError(
            f"gammabeta: GAMMABETA_KERNELS=1 requires the native CPU kernels, which are {reason}. {cure}."
        )
    # A worker process does not warn, since the process that started it has.
    if wanted != "0" and multiprocessing.parent_process() is None:
        warnings.warn(
            f"gammabeta: the native CPU kernels are {reason}. Results are still right, but slower, by torch's own "
            f"ops and the reference in plain torch. {cure}; or set GAMMABETA_KERNELS=0 to run without them.",
            RuntimeWarning,
            stacklevel=2,
        )


# The number of elements of x below which torch's op runs; 0: never. torch's op must be as accurate, and faster for
# forward and backward together. A call of ours costs some 10 µs more. Only torch's RMSNorm is accurate enough
# (docs/conventions.md): it is composed of elementwise operations. The others lose too much accuracy once the mean is 10
# times the spread, in some layout, forward or backward.
WORTH_IT = {"batch_norm": 0, "instance_norm": 0, "group_norm": 0, "layer_norm": 0, "rms_norm": 4096}
if "GAMMABETA_WORTH_IT" in os.environ:  # for tests: the choice may change nothing but the time
    WORTH_IT = dict.fromkeys(WORTH_IT, int(os.environ["GAMMABETA_WORTH_IT"]))

# The same for CUDA, in all dtypes. Neither the accuracy nor the speed of torch's ops was measured there. Derived:
# torch's launch takes a few µs on the host, ours some tens. At 4.3 TB/s a norm of 2²² values in float32 (traffic of
# three tensors, 50 MB) takes 12 µs, so that the host no longer matters.
WORTH_IT_ON_CUDA = 1 << 22


def leaves_to_torch(norm: str, x: torch.Tensor) -> bool:
    """Return whether torch's op runs instead of the kernel, where both can: accurate, and faster for x of this size."""
    if x.is_cuda:
        return x.numel() < WORTH_IT_ON_CUDA
    return x.numel() < WORTH_IT[norm] and (x.dtype == torch.float32 or x.dtype == torch.float64)


def leaves_compiled_to_torch(norm: str, x: torch.Tensor) -> bool:
    """Return the same for compiled code, for any size: there torch's op can fuse with its surroundings.

    Only on CUDA, where the gain is unmeasured. On a CPU the generated code adds up the gradients of parameters one by
    one. Over 16,384 rows of one value, the gradient of LayerNorm's bias is off by 540 ulp; by our kernel, 5.
    """
    return x.is_cuda and norm in ("layer_norm", "rms_norm")


if torch.version.cuda is not None and os.environ.get("GAMMABETA_KERNELS") != "0":
    register.register()
missing: str | None = _load()
if missing is not None:
    _tell(missing)

"""The build of the native kernels. Everything else is in pyproject.toml.

One extension, `gammabeta.kernels._cpu`, against PyTorch's stable ABI and Python's limited API: one binary for every
Python from 3.10 and every torch from 2.10, on x86-64 and aarch64. It needs torch and a C++ compiler at build time. pip
isolates builds from the environment that it installs into; the torch of that environment serves all the same. Where
torch or a compiler is missing, or the compiler fails, the package installs without the extension and says so, and its
wheel has the tag py3-none-any: pip does not take it for one with kernels. Environment variables:

    GAMMABETA_KERNELS=0     do not build it
    GAMMABETA_KERNELS=1     fail where it cannot be built
    GAMMABETA_SANITIZE=1    with AddressSanitizer and UndefinedBehaviorSanitizer, in a separate build folder
"""

import os
import sys
import sysconfig
from glob import glob
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

# The oldest torch whose stable ABI the extension uses. The oldest torch that gammabeta supports is in pyproject.toml.
TORCH_TARGET_VERSION = "0x020a000000000000"

SANITIZE = os.environ.get("GAMMABETA_SANITIZE") == "1"
KERNELS = os.environ.get("GAMMABETA_KERNELS", "")
# A separate folder for each set of flags: a library in the other one's would be packaged without being linked again.
BUILD = "build/sanitized" if SANITIZE else "build"


def files(*patterns: str) -> list[str]:
    """Return the kernels' files of these patterns, relative to this folder as setuptools requires, in a fixed order."""
    return sorted(path for pattern in patterns for path in glob(f"src/gammabeta/kernels/cpu/{pattern}"))


def find_torch() -> None:
    """Make torch importable in an isolated build, if the environment that pip installs into has it.

    pip hides that environment's packages from a build, but runs its Python, whose paths name them. They come last: what
    the build requires stays what pip brought.
    """
    if find_spec("torch") is None:
        places = dict.fromkeys(sysconfig.get_path(name) for name in ("platlib", "purelib"))
        sys.path += [place for place in places if Path(place, "torch", "__init__.py").exists()]


def extension() -> tuple[Extension, type[build_ext], str | None]:
    """Return the extension, the command that builds it, and why it cannot be built (None where it may be)."""
    name, sources, depends = "gammabeta.kernels._cpu", files("*.cpp"), files("*.h")
    bare = Extension(name, sources, depends=depends, optional=True, py_limited_api=True)
    if KERNELS == "0":
        return bare, build_ext, "GAMMABETA_KERNELS=0 is set"
    if sys.platform == "win32":
        return bare, build_ext, "they are built on Linux and macOS"
    find_torch()
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        return bare, build_ext, f"torch is not there at build time ({error}): install it, and gammabeta again"
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"] if SANITIZE else []
    # A switch without a case for an activation would let it pass as the identity.
    flags = ["-std=c++17", "-Werror=switch", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden"]
    flags += ["-Wno-psabi"]
    # Python's own flags contain -fwrapv, under which an overflow is not an error and would not be reported.
    flags += ["-O1", "-g", "-fno-wrapv", "-fno-omit-frame-pointer", *sanitizers] if SANITIZE else ["-O3", "-g0"]
    built = CppExtension(
        name, sources, depends=depends, optional=True, py_limited_api=True,
        extra_compile_args=[*flags, f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"],
        extra_link_args=sanitizers,
    )  # fmt: skip
    return built, BuildExtension, None


EXTENSION, COMMAND, WHY_NOT = extension()


class Kernels(COMMAND):  # type: ignore[misc, valid-type]
    """Builds the extension, or says why the package is installed without it."""

    def build_extensions(self) -> None:
        if self.editable_mode:  # in setuptools' temporary folder ninja would compile everything each time
            self.build_temp = os.path.join(BUILD, "editable")
        reason = WHY_NOT
        if reason is None:
            try:
                super().build_extensions()
                return
            # torch raises RuntimeError if ninja fails and CalledProcessError if the compiler does not report its
            # version; distutils has its own errors. After any of them there is no extension.
            except Exception as error:
                reason = f"building them failed ({type(error).__name__}: {error})"
        if KERNELS == "1":
            raise SystemExit(f"gammabeta: GAMMABETA_KERNELS=1 requires the native kernels, but {reason}.")
        print(f"gammabeta: installed WITHOUT its native CPU kernels: {reason}.", file=sys.stderr, flush=True)
        for one in self.extensions:  # else that of an older build would be packaged
            Path(self.get_ext_fullpath(one.name)).unlink(missing_ok=True)
        self.distribution.ext_modules = []

    def copy_extensions_to_source(self) -> None:
        for one in self.extensions:  # else that of an older build would be loaded
            Path(self.get_ext_fullpath(one.name)).unlink(missing_ok=True)
        super().copy_extensions_to_source()


class Wheel(bdist_wheel):
    """Packs a wheel that any Python on any machine can take where the extension was not built."""

    def run(self) -> None:
        self.run_command("build")
        self.root_is_pure = not self.distribution.has_ext_modules()
        self.skip_build = True  # else setuptools builds the extension again, with torch's flags twice: all of its files
        super().run()


setup(
    ext_modules=[EXTENSION],
    cmdclass={"build_ext": Kernels, "bdist_wheel": Wheel},
    options={
        "bdist_wheel": {"py_limited_api": "cp310"},
        "build": {"build_base": BUILD},
    },
)

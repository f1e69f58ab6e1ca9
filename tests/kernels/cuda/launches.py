"""The launches of an op, recorded instead of made, and compiled for a GPU that need not be present."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from tests.kernels.cuda.assembly import Instruction, instructions_of
from torch import Tensor
from triton.backends.compiler import GPUTarget

from gammabeta.kernels.cuda import channel_ops, sample_ops, sums

TYPES = {
    torch.float64: "*fp64", torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16",
    torch.int64: "*i64", torch.int32: "*i32", torch.bool: "*i1",
}  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """The launch of a kernel, with all its arguments by name."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    warps: int

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__

    def compiled(self, capability: int) -> Any:
        """Return the specialization of Triton's launcher: divisibility by 16 and a size of 1 are known."""
        signature, constants, attributes = {}, {}, {}
        for i, parameter in enumerate(self.kernel.params):
            value = self.arguments[parameter.name]
            if isinstance(value, Tensor):
                signature[parameter.name] = TYPES[value.dtype]
                attributes[(i,)] = [["tt.divisibility", 16]]
            elif parameter.is_constexpr or value is None or value == 1:
                signature[parameter.name] = "constexpr"
                constants[(i,)] = value
            else:
                signature[parameter.name] = "i32"
                if value % 16 == 0:
                    attributes[(i,)] = [["tt.divisibility", 16]]
        source = triton.compiler.ASTSource(self.kernel, signature, constants, attributes)
        options = {"num_warps": self.warps, "enable_fp_fusion": True}
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)

    def with_sizes_of_1(self) -> Launch:
        """Return the launch with every integer 1, hence a compile-time constant: one row, one program, one channel."""
        ones = {
            parameter.name: 1
            for parameter in self.kernel.params
            if not parameter.is_constexpr and isinstance(self.arguments[parameter.name], int)
        }
        return replace(self, arguments=self.arguments | ones)

    def resources(self, capability: int) -> dict[str, int]:
        """Return the assembler's report: REG, STACK (for spilled registers), SHARED, LOCAL, ..."""
        report = self.inspected(capability, "--dump-resource-usage")
        return {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", report)}

    def code(self, capability: int) -> list[Instruction]:
        return instructions_of(self.inspected(capability, "--dump-sass"))

    def inspected(self, capability: int, option: str) -> str:
        """Run Triton's own cuobjdump on the binary."""
        binary = self.compiled(capability).asm["cubin"]
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        with tempfile.NamedTemporaryFile(suffix=".cubin", delete=False) as file:
            file.write(binary)
        try:
            done = subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True, timeout=60)
        finally:
            os.unlink(file.name)
        return done.stdout


@contextmanager
def taken_down(patch: pytest.MonkeyPatch) -> Iterator[list[Launch]]:
    """Record launches in the list instead of making them. Results are uninitialized memory."""
    launches: list[Launch] = []

    class Taken:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def launch(*args: Any, num_warps: int, **named: Any) -> None:
                arguments = dict(zip(self.kernel.arg_names, args, strict=False)) | named
                launches.append(Launch(self.kernel, tuple(map(int, grid)), arguments, num_warps))

            return launch

    with patch.context() as inside:
        for module in (channel_ops, sample_ops, sums):
            inside.setattr(module, "wrap_triton", Taken)
        yield launches

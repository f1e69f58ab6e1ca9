"""What a kernel's machine code needs of a multiprocessor: instructions against bytes, in its loops.

Counted, not measured: only a lower bound of the time that a kernel takes. A multiprocessor issues four warp
instructions per cycle. In an H200 its share of the memory's bandwidth is 19 bytes per cycle (4.3 TB/s over 132
multiprocessors at 1.7 GHz). A loop whose instructions take longer than its bytes cannot come near that bandwidth.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

ISSUED_A_CYCLE = 4
BYTES_A_CYCLE = 19

WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}  # bytes; 4 for all others


@dataclass(frozen=True)
class Instruction:
    address: int
    predicated: bool
    name: str
    suffixes: tuple[str, ...]
    operands: str

    @property
    def width(self) -> int:
        """Return the bytes that a thread loads or stores."""
        return next((WIDTHS[suffix] for suffix in self.suffixes if suffix in WIDTHS), 4)

    @property
    def target(self) -> int | None:
        """Return the target of a branch."""
        found = re.search(r"0x([0-9a-f]+)\)?$", self.operands.strip()) if self.name == "BRA" else None
        return int(found.group(1), 16) if found else None

    @property
    def always_taken(self) -> bool:
        return not self.predicated and not re.match(r"!?U?P\d", self.operands.strip())


@dataclass(frozen=True)
class Passage:
    """The instructions of the shortest path through a loop, or through a whole kernel."""

    instructions: tuple[Instruction, ...]

    def of(self, name: str) -> Counter[int]:
        """Count the accesses of each width, of LDG (loads from memory), STG (stores), ..."""
        return Counter(i.width for i in self.instructions if i.name == name)

    @property
    def loaded(self) -> int:
        """Return the bytes per thread."""
        return sum(width * count for width, count in self.of("LDG").items())

    @property
    def bytes(self) -> int:
        return self.loaded + sum(width * count for width, count in self.of("STG").items())

    @property
    def issue_share(self) -> float:
        """Return the time to issue its instructions, over the time to move its bytes."""
        return len(self.instructions) / ISSUED_A_CYCLE / (32 * self.bytes / BYTES_A_CYCLE)


def instructions_of(disassembly: str) -> list[Instruction]:
    found = []
    for address, text in re.findall(r"^\s+/\*([0-9a-f]{4,6})\*/\s+(.*?)\s*;", disassembly, re.M):
        parts = re.match(r"(@!?U?PT?\d?\s+)?([A-Z0-9]+)((?:\.\w+)*)\s*(.*)", text)
        assert parts is not None, text
        predicate, name, suffixes, operands = parts.groups()
        found.append(
            Instruction(int(address, 16), predicate is not None, name, tuple(suffixes.split(".")[1:]), operands)
        )
    return found


def loops(code: list[Instruction]) -> list[Passage]:
    """Return one turn of each innermost loop that accesses memory, along its shortest path."""
    ends = [(i.target, i.address) for i in code if i.target is not None and i.target < i.address]
    innermost = [
        (start, end) for start, end in ends
        if not any(start <= s and e <= end and (s, e) != (start, end) for s, e in ends)
    ]  # fmt: skip
    passages = [shortest([i for i in code if start <= i.address <= end]) for start, end in innermost]
    return [passage for passage in passages if passage.bytes]


def whole(code: list[Instruction]) -> Passage:
    """Return a kernel without loops, leaving out padding and subroutines."""
    end = next(i for i, instruction in enumerate(code) if instruction.name == "EXIT" and not instruction.predicated)
    return shortest(code[: end + 1])


def shortest(code: list[Instruction]) -> Passage:
    """Return the shortest path from the first of these instructions to the last, along forward branches."""
    steps: dict[int, tuple[int, int | None]] = {code[0].address: (1, None)}  # steps so far, and the predecessor
    for instruction, after in zip(code, [*code[1:], None], strict=True):
        if instruction.address not in steps:
            continue
        reached = []
        if after is not None and not (instruction.target is not None and instruction.always_taken):
            reached.append(after.address)
        if instruction.target is not None and instruction.target > instruction.address:
            reached.append(instruction.target)
        for address in reached:
            count = steps[instruction.address][0] + 1
            if address not in steps or count < steps[address][0]:
                steps[address] = count, instruction.address
    by_address = {i.address: i for i in code}
    way, at = [], code[-1].address if code[-1].address in steps else max(steps)
    while at is not None:
        way.append(by_address[at])
        at = steps[at][1]
    return Passage(tuple(reversed(way)))

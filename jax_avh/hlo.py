"""What a compiled program moves, read from its optimised HLO: bytes of memory per run, and its collectives.

The compilers' own cost analysis counts the body of a loop once and is missing on GPUs. Here, loops count as often as
they run, and arrays that a TPU keeps in its fast memory (marked S(1)) do not count as traffic.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

DTYPE_BYTES = {
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2"), 1),
    **dict.fromkeys(("bf16", "f16", "s16", "u16"), 2),
    **dict.fromkeys(("f32", "s32", "u32"), 4),
    **dict.fromkeys(("f64", "s64", "u64", "c64"), 8),
}
ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")
FAST = "S(1)"
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
FREE = {  # instructions that move nothing, and second halves of asynchronous ones
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
    *("copy-done", "slice-done", "async-update", "async-done", "send-done", "recv-done"),
    *(f"{kind}-done" for kind in COLLECTIVES),
}
SLICES = ("dynamic-slice", "slice", "gather")  # read only what they return


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a computation."""

    name: str
    type: str  # of its result, as printed
    opcode: str
    operands: tuple[str, ...]  # names
    rest: str  # arguments and attributes, as printed


@dataclasses.dataclass(frozen=True)
class Collective:
    """An exchange between devices, which a program runs one or more times."""

    kind: str  # one of COLLECTIVES
    nbytes: int  # of its result on each device
    times: int  # per run of the program


@dataclasses.dataclass(frozen=True)
class Program:
    """Instructions of a compiled program, by computation."""

    computations: dict[str, tuple[Instruction, ...]]
    entry: str

    def runs(self, computation: str = "", times: int = 1) -> Iterator[tuple[Instruction, list[str], int]]:
        """Yields every instruction that runs on its own, with the types of its operands and how often it runs."""
        instructions = self.computations[computation or self.entry]
        types = {instruction.name: instruction.type for instruction in instructions}
        for instruction in instructions:
            if instruction.opcode == "while":
                body, condition = (_named(instruction, what) for what in ("body", "condition"))
                yield from self.runs(body, times * self._iterations(instruction, condition))
            elif instruction.opcode in ("call", "conditional", "async-start"):
                for called in re.findall(r"(?:to_apply|calls|\w+_computation)=%?([\w.\-]+)", instruction.rest):
                    yield from self.runs(called, times)
            elif instruction.opcode not in FREE:
                yield instruction, [types.get(name, "") for name in instruction.operands], times

    def collectives(self) -> list[Collective]:
        """Returns the program's collectives, in the order in which they run."""
        found = []
        for instruction, _, times in self.runs():
            kind = instruction.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                # A started exchange returns its operands with its result.
                own = instruction.type
                if instruction.opcode != kind and kind != "all-reduce":
                    own = own.rpartition("(")[2] if own.count("(") > 1 else own.split(", ", 1)[-1]
                found.append(Collective(kind, nbytes(own, fast=True), times))
            elif instruction.opcode == "fusion":
                fused = self.computations[_named(instruction, "calls")]
                inner = (one for one in fused if one.opcode in COLLECTIVES)
                found += [Collective(one.opcode, nbytes(one.type, fast=True), times) for one in inner]
        return found

    def traffic(self) -> int:
        """Returns the bytes that one run reads from and writes to the device's memory, except its fast memory."""
        return sum(self._moved(instruction, operands) * times for instruction, operands, times in self.runs())

    def _iterations(self, loop: Instruction, condition: str) -> int:
        if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(known[1])
        limits = [
            int(found[1])
            for instruction in self.computations[condition]
            if instruction.opcode == "constant" and (found := re.match(r"(\d+)\)", instruction.rest))
        ]
        return max(limits, default=1)

    def _moved(self, instruction: Instruction, operands: list[str]) -> int:
        if instruction.opcode in SLICES:
            return 2 * nbytes(instruction.type)
        if instruction.opcode == "dynamic-update-slice":
            return 2 * nbytes(operands[1])
        if instruction.opcode == "fusion":
            return self._fused(_named(instruction, "calls"), operands)
        if instruction.opcode.endswith("-start"):  # a copy: read once, written once
            return nbytes(instruction.type) // 2
        return nbytes(instruction.type) + sum(map(nbytes, operands))

    def _fused(self, computation: str, operands: list[str]) -> int:
        """Returns what a fusion moves: of operands that it only slices, the slices."""
        instructions = {instruction.name: instruction for instruction in self.computations[computation]}
        uses: dict[str, list[Instruction]] = {}
        for instruction in instructions.values():
            for name in instruction.operands:
                uses.setdefault(name, []).append(instruction)

        def read(name: str) -> int:
            total = 0
            for use in uses.get(name, []):
                if use.opcode == "bitcast":
                    total += read(use.name)
                elif use.opcode in SLICES and use.operands[0] == name:
                    total += nbytes(use.type, fast=True)
                elif use.opcode != "dynamic-update-slice" or use.operands[0] != name:
                    return nbytes(instructions[name].type, fast=True)
            return total

        def written(name: str) -> int:
            instruction = instructions[name]
            if instruction.opcode == "tuple":
                return sum(map(written, instruction.operands))
            if instruction.opcode == "bitcast":
                return written(instruction.operands[0])
            if instruction.opcode == "dynamic-update-slice":
                return nbytes(instructions[instruction.operands[1]].type)
            return nbytes(instruction.type)

        moved = written(self.computations[computation][-1].name)
        for instruction in instructions.values():
            if instruction.opcode == "parameter":
                operand = operands[int(instruction.rest.partition(")")[0])]
                moved += min(read(instruction.name), nbytes(operand))  # 0 in fast memory
        return moved


def parse(text: str) -> Program:
    """Parses the HLO of a compiled program, as `compiled.as_text()` prints it."""
    computations: dict[str, list[Instruction]] = {}
    entry = current = ""
    for line in text.splitlines():
        if not line.startswith(" "):
            if found := COMPUTATION.match(line):
                current = found[2]
                computations[current] = []
                entry = current if found[1] else entry
        elif (found := INSTRUCTION.match(line)) and current:
            name, kind, opcode, rest = found.groups()
            operands = tuple(re.findall(r"%([\w.\-]+)", rest.partition("), ")[0]))
            instruction = Instruction(name, kind, opcode, operands, rest)
            computations[current].append(instruction)
    assert entry, "a program has an entry"
    return Program({name: tuple(found) for name, found in computations.items()}, entry)


def nbytes(kind: str, fast: bool = False) -> int:
    """Returns the size of a type as printed: of one array, or of all arrays of a tuple.

    Args:
      kind: the type.
      fast: whether arrays in a TPU's fast memory count.
    """
    total = 0
    for dtype, shape, layout in ARRAY.findall(kind):
        if fast or FAST not in layout:
            total += DTYPE_BYTES.get(dtype, 0) * math.prod(map(int, filter(None, shape.split(","))))
    return total


def _named(instruction: Instruction, what: str) -> str:
    found = re.search(rf"\b{what}=%?([\w.\-]+)", instruction.rest)
    assert found, f"{instruction.opcode} has no {what}"
    return found[1]

"""How the Triton kernels are launched: tile sizes, warps, and into how many programs a reduction is split.

Nothing here has been measured on a GPU. Every value is a starting point that follows from the derivation beside it, for
an H200 (132 multiprocessors, 50 MB of L2 cache, 65,536 registers of 32 bits on each multiprocessor);
`benchmarks/results/` names the command that measures them.

The number of multiprocessors is a constant and not asked of the device: how a tensor is cut decides the order of its
sums, so that all GPUs give the same cut, and a traced graph needs no device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Tiles:
    """A cut of statistics over values.

    Attributes:
        values, channels: the tile, both powers of 2.
        count: how many tiles there are along the values of one statistic.
        each: how many of them one program takes.
        warps: of a program.
    """

    values: int
    channels: int
    count: int
    each: int
    warps: int

    @property
    def splits(self) -> int:
        """How many programs share a statistic."""
        return -(-self.count // self.each)


@dataclass(frozen=True)
class Launch:
    """The choices.

    Attributes:
        multiprocessors: derived: an H200's.
        waves: programs of a reduction for each multiprocessor. Derived: four programs of 4 warps keep 16 of 64 warps
            resident, each with 16 loads of its own in flight (`tile` over the threads): 8 KB in 16 bits for each
            program, above the 19 bytes a cycle that 4.3 TB/s are for one multiprocessor, at about 800 cycles' latency.
        tile: elements of a tile of the channel norms and of groups. Derived: 2048 over 128 threads are 16 values of
            each operand; five accumulators beside them stay below 128 registers.
        narrow: channels of a tile where channels are contiguous. Derived: 64 values of 16 bits are 128 bytes, one line.
        tile_warps: of those tiles.
        most_splits: programs that share one statistic, at most. Derived: the merging program holds one partial of each
            for 16 channels, 512 × 16 values over 128 threads: 64 registers.
        applied: tiles of a program that applies statistics. Derived: four tiles spread the loading of a channel's six
            values over 8,192 elements.
        fused_bytes: up to how many bytes of x the channels that are worked on at once may have for one kernel to do
            moments and output. Derived: its second reading comes from L2 if that holds them; half of it, since output
            passes through too.
        row: elements of the longest row that is kept in registers. Derived: backward holds five values of each, 8,192
            over 16 warps are 16 of each operand: 80 of 128 registers.
        row_tile: elements of a tile of rows, where rows are shorter. Derived: as `tile`.
        row_values: of one thread in a tile of rows, which gives the warps. Derived: 16 values of 16 bits are two loads
            of 16 bytes.
        row_waves: programs for each multiprocessor in the backward of rows, each of which leaves one partial sum of
            the parameters' gradients. Derived: at (16384, 4096) in 16 bits, 2 × 132 partials of two float32 rows are
            9 MB of 403 MB of traffic.
        group_warps: of a program that has a whole group. Derived: as `tile_warps`, a group's tile being as large.
    """

    multiprocessors: int = 132
    waves: int = 4
    tile: int = 2048
    narrow: int = 64
    tile_warps: int = 8
    most_splits: int = 512
    applied: int = 4
    fused_bytes: int = 24 << 20
    row: int = 8192
    row_tile: int = 2048
    row_values: int = 8
    row_waves: int = 2
    group_warps: int = 8

    def channel_tiles(self, outer: int, values: int, channels: int, channels_contiguous: bool, sharers: int) -> Tiles:
        """The cut of (outer, values, channels) for a pass in which `sharers` programs in all are wanted."""
        if channels_contiguous:
            wide = power_of_2(channels, self.narrow)
            tall = power_of_2(values, max(1, self.tile // wide))
        else:
            # A plane of 7 × 7 leaves most of a tile empty: several channels of it, which lie side by side.
            tall = power_of_2(values, self.tile)
            wide = power_of_2(channels, max(1, self.tile // tall))
        count = outer * ceil_div(values, tall)
        beside = ceil_div(channels, wide)
        splits = min(count, self.most_splits, max(1, sharers // beside))
        return Tiles(tall, wide, count, ceil_div(count, splits), self.tile_warps)

    def of_reduction(self, outer: int, values: int, channels: int, channels_contiguous: bool) -> Tiles:
        return self.channel_tiles(outer, values, channels, channels_contiguous, self.waves * self.multiprocessors)

    def of_application(self, outer: int, values: int, channels: int, channels_contiguous: bool) -> Tiles:
        """The cut of a pass that sums up nothing: a few tiles a program, however many programs that makes."""
        tiles = self.channel_tiles(outer, values, channels, channels_contiguous, 1)
        return replace(tiles, each=self.applied)

    def fuses(self, tiles: Tiles, channels: int, value_bytes: int) -> bool:
        """Whether one program for each block of channels does everything, in one kernel."""
        if tiles.splits == 1:
            return True
        at_once = min(channels, tiles.channels * self.waves * self.multiprocessors)
        small = at_once * tiles.count * tiles.values * value_bytes <= self.fused_bytes
        return small and ceil_div(channels, tiles.channels) >= self.multiprocessors

    def group_splits(self, groups: int, v_tiles: int, d_tiles: int) -> tuple[int, int]:
        """Into how many ranges of tiles a group is cut, along the values and along the channels; (1, 1) is one program.

        One program where groups fill half the multiprocessors: more programs would each read the group a second time
        from memory instead of a cache.
        """
        wanted = ceil_div(self.waves * self.multiprocessors, groups)
        if 2 * groups >= self.multiprocessors or v_tiles * d_tiles < 4:
            return 1, 1
        d_splits = min(d_tiles, wanted, self.most_splits)
        v_splits = min(v_tiles, max(1, wanted // d_splits), max(1, self.most_splits // d_splits))
        # As many as there are when all but the last have the same number of tiles.
        v_splits, d_splits = (ceil_div(n, ceil_div(n, s)) for n, s in ((v_tiles, v_splits), (d_tiles, d_splits)))
        return v_splits, d_splits

    def row_tiles(self, rows: int, length: int) -> tuple[int, int, int]:
        """Rows and elements of a tile of rows, and its warps."""
        wide = power_of_2(length, self.row)
        tall = power_of_2(rows, max(1, self.row_tile // wide))
        return tall, wide, min(32, max(1, tall * wide // (32 * self.row_values)))

    def row_programs(self, tiles: int) -> tuple[int, int]:
        """Tiles of each program of the backward of rows, and how many programs that makes."""
        each = ceil_div(tiles, min(tiles, self.row_waves * self.multiprocessors))
        return each, ceil_div(tiles, each)

    def group_tile(self, values: int, channels: int, channels_contiguous: bool) -> tuple[int, int]:
        """Values and channels of a group's tile."""
        if channels_contiguous:
            wide = power_of_2(channels, self.tile)
            return power_of_2(values, max(1, self.tile // wide)), wide
        tall = power_of_2(values, self.tile)
        return tall, power_of_2(channels, max(1, self.tile // tall))

    def unfused(self) -> Launch:
        """The same without fusing, for tests."""
        return replace(self, fused_bytes=0)


def power_of_2(n: int, most: int) -> int:
    """The next power of 2, n among them, `most` at the most. By comparisons alone, which a traced size can answer."""
    power = 1
    while power < n and power < most:
        power *= 2
    return power


def ceil_div(n: int, by: int) -> int:
    return -(-n // by)


LAUNCH = Launch()

"""How the Triton kernels are launched: tile sizes, warps, and into how many programs a reduction is split.

Nothing here has been measured on a GPU. Every value follows from the derivation beside it, for an H200:

- 132 multiprocessors, each with 65,536 registers of 32 bits and at most 64 warps. Each issues 4 warp instructions per
  cycle, and its share of 4.3 TB/s is 19 bytes per cycle.
- 50 MB of L2 cache.
- Some 1,000 cycles from a load to its value. So 19 KB must be in flight on each multiprocessor, twice that to be safe.

"Counted" is what the compiled kernels were found to need of these (`tests/kernels/cuda/test_compiled.py`, which prints
the table in `benchmarks/results/`). That page names the command that measures them.

The number of multiprocessors is a constant, not a property of the device. How a tensor is cut decides the order of its
sums, so all GPUs cut alike, and a traced graph needs no device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Tiles:
    """A partition of x, (outer samples, values, channels), for the statistics of channels.

    Attributes:
        deep, values, channels: the shape of a tile: outer samples, values of each, channels; all powers of 2.
        count: number of tiles along the values of one statistic.
        full: number of leading tiles that have all their outer samples.
        each: number of tiles per program.
        warps: per program.
    """

    deep: int
    values: int
    channels: int
    count: int
    full: int
    each: int
    warps: int

    @property
    def splits(self) -> int:
        """Return how many programs share a statistic."""
        return -(-self.count // self.each)


@dataclass(frozen=True)
class GroupTiles:
    """A partition of a group, (values, channels).

    Attributes:
        deep, along_channels: a tile is `deep` times values by channels, side by side along the channels or the values.
        values, channels: powers of 2.
        v_count, d_count: number of tiles along the values and along the channels.
    """

    deep: int
    along_channels: bool
    values: int
    channels: int
    v_count: int
    d_count: int


@dataclass(frozen=True)
class Launch:
    """The launch choices.

    Attributes:
        multiprocessors: of an H200.
        waves: programs of a reduction per multiprocessor. Derived: 2 to 4 of 8 warps are resident, as registers
            allow, so that all run at once or in two full turns.
        tile: elements of a tile of the channel norms and of groups. Derived: 2048 over 256 threads are 8 values each,
            one access of 16 bytes in 16 bits.
        narrow: channels of a tile where channels are contiguous. Derived: 64 values of 16 bits are 128 bytes, one line.
        moments_bytes: what a thread loads of each element of a tile, over several outer samples, before it updates the
            moments. Counted: 8 bytes (four samples in 16 bits) keep 32 to 64 KB in flight, and instructions take 0.6 of
            the memory's time. One sample at a time by Welford's update took 1.8 of it, with 12 to 16 KB in flight. With
            16 bytes, registers leave only 8 warps where channels are contiguous.
        pass_bytes: the same in every other pass, which loads two or three tensors. Counted: 32 to 128 KB in flight (12
            to 16 with planes of 7 × 7), 0.1 to 0.6 of the memory's time.
        tile_warps: warps per tile. Derived: from its threads.
        most_splits: largest number of programs that share one statistic. Derived: the merging program holds one partial
            of each.
        merged: channels of a program that merges. Derived: 8 values of 32 bits are 32 bytes, the smallest access to
            memory; 512 × 8 over 256 threads are 16 values of four partials.
        applied: tiles of a program that applies statistics. Derived: four tiles spread the loading of a channel's six
            values over 16,384 elements in 16 bits.
        fused_bytes: largest size in bytes of the channels in progress for which one kernel does moments and output.
            Derived: its second reading comes from L2 if that holds them; half of L2, since output passes through too.
        row: elements of the longest row that is kept in registers. Derived: backward holds five values of each; 8,192
            over 32 warps are 8 of each operand. Counted: 49 to 58 registers.
        row_tile: elements of a tile of rows, where rows are shorter. Derived: as `tile`.
        row_values: values per thread in a tile of rows, which gives the warps. Counted, for rows of 4096 in 16 bits and
            by the bytes of x and y only: with 8, instructions take 1.1 of the memory's time, with 16 they take 0.8.
        row_backward_values: the same in backward, which holds two operands and two sums. Counted: 64 registers, 32
            warps at once, 0.6 of the memory's time; 16 values take 121 registers and leave 16 warps.
        row_warps, row_waves: the backward of rows has as many programs per multiprocessor as make `row_warps` warps, at
            most `row_waves`. Derived: that many are resident. Each writes one partial sum of the parameters' gradients:
            at (16384, 4096) 2 × 132 partials of two float32 rows, 9 MB of 403 MB of traffic.
        group_warps: warps of a program that has a whole group. Derived: as `tile_warps`, since a group's tile is as
            large.
    """

    multiprocessors: int = 132
    waves: int = 4
    tile: int = 2048
    narrow: int = 64
    moments_bytes: int = 8
    pass_bytes: int = 4
    tile_warps: int = 8
    most_splits: int = 512
    merged: int = 8
    applied: int = 4
    fused_bytes: int = 24 << 20
    row: int = 8192
    row_tile: int = 2048
    row_values: int = 16
    row_backward_values: int = 8
    row_warps: int = 32
    row_waves: int = 4
    group_warps: int = 8

    def channel_tiles(
        self, outer: int, values: int, channels: int, channels_contiguous: bool, deep: int, sharers: int
    ) -> Tiles:
        """Partition (outer, values, channels) for a pass that should have `sharers` programs in all."""
        if channels_contiguous:
            wide = power_of_2(channels, self.narrow)
            tall = power_of_2(values, max(1, self.tile // wide))
            outer, values, rest = ceil_div(values, tall), tall, values % tall
        else:
            # A plane of 7 × 7 would leave most of a tile empty, so a tile has several neighbouring channels.
            tall = power_of_2(values, self.tile)
            wide, rest = power_of_2(channels, max(1, self.tile // tall)), 0
        deep = power_of_2(outer, deep)
        v_tiles = ceil_div(values, tall)
        count = ceil_div(outer, deep) * v_tiles
        full = (outer if rest == 0 else outer - 1) // deep * v_tiles
        splits = min(count, self.most_splits, max(1, sharers // ceil_div(channels, wide)))
        return Tiles(deep, tall, wide, count, full, ceil_div(count, splits), self.tile_warps)

    def of_moments(self, outer: int, values: int, channels: int, channels_contiguous: bool, value_bytes: int) -> Tiles:
        """Partition for the pass that computes moments."""
        deep = self.deep(self.moments_bytes, values, channels, channels_contiguous, value_bytes)
        sharers = self.waves * self.multiprocessors
        return self.channel_tiles(outer, values, channels, channels_contiguous, deep, sharers)

    def of_sums(self, outer: int, values: int, channels: int, channels_contiguous: bool, value_bytes: int) -> Tiles:
        """Partition for a pass that computes sums."""
        deep = self.deep(self.pass_bytes, values, channels, channels_contiguous, value_bytes)
        sharers = self.waves * self.multiprocessors
        return self.channel_tiles(outer, values, channels, channels_contiguous, deep, sharers)

    def of_application(
        self, outer: int, values: int, channels: int, channels_contiguous: bool, value_bytes: int
    ) -> Tiles:
        """Partition for a pass without sums: a few tiles per program, however many programs that makes."""
        deep = self.deep(self.pass_bytes, values, channels, channels_contiguous, value_bytes)
        tiles = self.channel_tiles(outer, values, channels, channels_contiguous, deep, 1)
        return replace(tiles, each=self.applied)

    def deep(self, loaded: int, values: int, channels: int, channels_contiguous: bool, value_bytes: int) -> int:
        """Return how many tiles a thread loads at once: `loaded` bytes per element of a tile, fewer where accesses are
        narrow, since each takes an address."""
        unit = unit_of(channels if channels_contiguous else values)
        return max(1, loaded // max(value_bytes, 4 // unit))

    def fuses(self, tiles: Tiles, channels: int, value_bytes: int) -> bool:
        """Return whether one kernel does everything, with one program for each block of channels."""
        if tiles.splits == 1:
            return True
        at_once = min(channels, tiles.channels * self.waves * self.multiprocessors)
        small = at_once * tiles.count * tiles.deep * tiles.values * value_bytes <= self.fused_bytes
        return small and ceil_div(channels, tiles.channels) >= self.multiprocessors

    def group_splits(self, groups: int, v_tiles: int, d_tiles: int) -> tuple[int, int]:
        """Return into how many ranges of tiles a group is cut, along values and channels; (1, 1) is one program.

        One program per group where groups fill half the multiprocessors. More programs would read the group a second
        time from memory instead of a cache.
        """
        wanted = ceil_div(self.waves * self.multiprocessors, groups)
        if 2 * groups >= self.multiprocessors or v_tiles * d_tiles < 4:
            return 1, 1
        d_splits = min(d_tiles, wanted, self.most_splits)
        v_splits = min(v_tiles, max(1, wanted // d_splits), max(1, self.most_splits // d_splits))
        # The number of ranges when all but the last have the same number of tiles.
        v_splits, d_splits = (ceil_div(n, ceil_div(n, s)) for n, s in ((v_tiles, v_splits), (d_tiles, d_splits)))
        return v_splits, d_splits

    def row_tiles(self, rows: int, length: int, thread_values: int) -> tuple[int, int, int]:
        """Return rows and elements of a tile of rows, and its warps."""
        wide = power_of_2(length, self.row)
        tall = power_of_2(rows, max(1, self.row_tile // wide))
        return tall, wide, min(32, max(1, tall * wide // (32 * thread_values)))

    def row_programs(self, tiles: int, warps: int) -> tuple[int, int]:
        """Return the tiles per program in the backward of rows, and how many programs that makes."""
        resident = min(self.row_waves, max(1, self.row_warps // warps))
        each = ceil_div(tiles, min(tiles, resident * self.multiprocessors))
        return each, ceil_div(tiles, each)

    def group_tiles(self, values: int, channels: int, channels_contiguous: bool, value_bytes: int) -> GroupTiles:
        """Partition a group."""
        deep = self.deep(self.pass_bytes, values, channels, channels_contiguous, value_bytes)
        if channels_contiguous:
            wide = power_of_2(channels, self.tile)
            tall = power_of_2(values, max(1, self.tile // wide))
        else:
            tall = power_of_2(values, self.tile)
            wide = power_of_2(channels, max(1, self.tile // tall))
        along_values, along_channels = ceil_div(values, tall), ceil_div(channels, wide)
        along_d = along_channels > along_values
        if along_d:
            deep = power_of_2(along_channels, deep)
            along_channels = ceil_div(along_channels, deep)
        else:
            deep = power_of_2(along_values, deep)
            along_values = ceil_div(along_values, deep)
        return GroupTiles(deep, along_d, tall, wide, along_values, along_channels)


def power_of_2(n: int, most: int) -> int:
    """Return the smallest power of 2 from n on, at most `most`. Uses only comparisons, which a traced size supports."""
    power = 1
    while power < n and power < most:
        power *= 2
    return power


def ceil_div(n: int, by: int) -> int:
    """Return n / by, rounded up."""
    return -(-n // by)


def unit_of(n: int) -> int:
    """Return the largest power of 2 that divides n, at most 16: the elements that can be accessed together."""
    return next((unit for unit in (16, 8, 4, 2) if n % unit == 0), 1)


LAUNCH = Launch()

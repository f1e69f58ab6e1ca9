"""How the Triton kernels are launched: tile sizes, warps, and into how many programs a reduction is split.

Nothing here has been measured on a GPU. Every value follows from the derivation beside it, for an H200: 132
multiprocessors, each with 65,536 registers of 32 bits and 64 warps at most, which issues 4 instructions of warps a
cycle and has 19 bytes a cycle of 4.3 TB/s; 50 MB of L2 cache. With some 1,000 cycles from a load to its value, 19 KB
have to be in flight on each, twice that with room to spare. "Counted" is what the compiled kernels were found to need
of that (`tests/kernels/cuda/test_compiled.py`, which prints the table in `benchmarks/results/`); that page names the
command that measures them.

The number of multiprocessors is a constant and not asked of the device: how a tensor is cut decides the order of its
sums, so that all GPUs give the same cut, and a traced graph needs no device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Tiles:
    """A cut of x, (outer samples, values, channels), for statistics of channels.

    Attributes:
        deep, values, channels: the tile: outer samples, values of each, channels; all powers of 2.
        count: how many tiles there are along the values of one statistic.
        full: how many of them, counted from the first, have all their outer samples.
        each: how many of them one program takes.
        warps: of a program.
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
        """How many programs share a statistic."""
        return -(-self.count // self.each)


@dataclass(frozen=True)
class GroupTiles:
    """A cut of a group, (values, channels).

    Attributes:
        deep, along_channels: a tile is that many times values by channels, beside each other along the channels or not.
        values, channels: powers of 2.
        v_count, d_count: how many tiles there are along the values and along the channels.
    """

    deep: int
    along_channels: bool
    values: int
    channels: int
    v_count: int
    d_count: int


@dataclass(frozen=True)
class Launch:
    """The choices.

    Attributes:
        multiprocessors: derived: an H200's.
        waves: programs of a reduction for each multiprocessor. Derived: 2 to 4 of 8 warps are resident, as registers
            allow, so that all are there at once or in two full turns.
        tile: elements of a tile of the channel norms and of groups. Derived: 2048 over 256 threads are 8 values of
            each, one access of 16 bytes in 16 bits.
        narrow: channels of a tile where channels are contiguous. Derived: 64 values of 16 bits are 128 bytes, one line.
        moments_bytes: what a thread loads of each element of a tile before it takes moments, over as many outer
            samples. Counted: 8, four samples in 16 bits, keep 32 to 64 KB in flight; instructions take 0.6 of the
            memory's time; one sample at a time by Welford's update took 1.8 of it, with 12 to 16 KB in flight. With 16
            registers leave 8 warps where channels are contiguous.
        pass_bytes: the same in every other pass, which has two or three tensors to load. Counted: 32 to 128 KB in
            flight (12 to 16 with planes of 7 × 7), 0.1 to 0.6 of the memory's time.
        tile_warps: of a tile. Derived: of its threads.
        most_splits: programs that share one statistic, at most. Derived: the merging program holds one partial of each.
        merged: channels of a program that merges. Derived: 8 values of 32 bits are 32 bytes, the least that memory
            gives; 512 × 8 over 256 threads are 16 values of four partials.
        applied: tiles of a program that applies statistics. Derived: four tiles spread the loading of a channel's six
            values over 16,384 elements in 16 bits.
        fused_bytes: up to how many bytes of x the channels that are worked on at once may have for one kernel to do
            moments and output. Derived: its second reading comes from L2 if that holds them; half of it, since output
            passes through too.
        row: elements of the longest row that is kept in registers. Derived: backward holds five values of each, 8,192
            over 32 warps are 8 of each operand. Counted: 49 to 58 registers.
        row_tile: elements of a tile of rows, where rows are shorter. Derived: as `tile`.
        row_values: of one thread in a tile of rows, which gives the warps. Counted, for rows of 4096 in 16 bits and by
            the bytes of x and y alone: with 8 instructions take 1.1 of the memory's time, with 16 they take 0.8.
        row_backward_values: the same in the backward, which holds two operands and two sums. Counted: 64 registers, 32
            warps at once, 0.6 of the memory's time; 16 values take 121 registers and leave 16 warps.
        row_warps, row_waves: the backward of rows has as many programs for each multiprocessor as make that many
            warps, `row_waves` at most. Derived: so many are resident; each leaves one partial sum of the parameters'
            gradients, at (16384, 4096) 2 × 132 partials of two float32 rows, 9 MB of 403 MB of traffic.
        group_warps: of a program that has a whole group. Derived: as `tile_warps`, a group's tile being as large.
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
        """The cut of (outer, values, channels) for a pass in which `sharers` programs in all are wanted."""
        if channels_contiguous:
            wide = power_of_2(channels, self.narrow)
            tall = power_of_2(values, max(1, self.tile // wide))
            outer, values, rest = ceil_div(values, tall), tall, values % tall
        else:
            # A plane of 7 × 7 leaves most of a tile empty: several channels of it, which lie side by side.
            tall = power_of_2(values, self.tile)
            wide, rest = power_of_2(channels, max(1, self.tile // tall)), 0
        deep = power_of_2(outer, deep)
        v_tiles = ceil_div(values, tall)
        count = ceil_div(outer, deep) * v_tiles
        full = (outer if rest == 0 else outer - 1) // deep * v_tiles
        splits = min(count, self.most_splits, max(1, sharers // ceil_div(channels, wide)))
        return Tiles(deep, tall, wide, count, full, ceil_div(count, splits), self.tile_warps)

    def of_moments(self, outer: int, values: int, channels: int, channels_contiguous: bool, value_bytes: int) -> Tiles:
        deep = self.deep(self.moments_bytes, values, channels, channels_contiguous, value_bytes)
        sharers = self.waves * self.multiprocessors
        return self.channel_tiles(outer, values, channels, channels_contiguous, deep, sharers)

    def of_sums(self, outer: int, values: int, channels: int, channels_contiguous: bool, value_bytes: int) -> Tiles:
        deep = self.deep(self.pass_bytes, values, channels, channels_contiguous, value_bytes)
        sharers = self.waves * self.multiprocessors
        return self.channel_tiles(outer, values, channels, channels_contiguous, deep, sharers)

    def of_application(
        self, outer: int, values: int, channels: int, channels_contiguous: bool, value_bytes: int
    ) -> Tiles:
        """The cut of a pass that sums up nothing: a few tiles a program, however many programs that makes."""
        deep = self.deep(self.pass_bytes, values, channels, channels_contiguous, value_bytes)
        tiles = self.channel_tiles(outer, values, channels, channels_contiguous, deep, 1)
        return replace(tiles, each=self.applied)

    def deep(self, loaded: int, values: int, channels: int, channels_contiguous: bool, value_bytes: int) -> int:
        """How many tiles beside each other make `loaded` bytes of each of their places; fewer where accesses are
        narrow, since each takes an address."""
        unit = unit_of(channels if channels_contiguous else values)
        return max(1, loaded // max(value_bytes, 4 // unit))

    def fuses(self, tiles: Tiles, channels: int, value_bytes: int) -> bool:
        """Whether one program for each block of channels does everything, in one kernel."""
        if tiles.splits == 1:
            return True
        at_once = min(channels, tiles.channels * self.waves * self.multiprocessors)
        small = at_once * tiles.count * tiles.deep * tiles.values * value_bytes <= self.fused_bytes
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

    def row_tiles(self, rows: int, length: int, thread_values: int) -> tuple[int, int, int]:
        """Rows and elements of a tile of rows, and its warps."""
        wide = power_of_2(length, self.row)
        tall = power_of_2(rows, max(1, self.row_tile // wide))
        return tall, wide, min(32, max(1, tall * wide // (32 * thread_values)))

    def row_programs(self, tiles: int, warps: int) -> tuple[int, int]:
        """Tiles of each program of the backward of rows, and how many programs that makes."""
        resident = min(self.row_waves, max(1, self.row_warps // warps))
        each = ceil_div(tiles, min(tiles, resident * self.multiprocessors))
        return each, ceil_div(tiles, each)

    def group_tiles(self, values: int, channels: int, channels_contiguous: bool, value_bytes: int) -> GroupTiles:
        """The cut of a group."""
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
    """The next power of 2, n among them, `most` at the most. By comparisons alone, which a traced size can answer."""
    power = 1
    while power < n and power < most:
        power *= 2
    return power


def ceil_div(n: int, by: int) -> int:
    return -(-n // by)


def unit_of(n: int) -> int:
    """The largest power of 2 that divides n, 16 at the most: where n is a stride, so many elements lie together."""
    return next((unit for unit in (16, 8, 4, 2) if n % unit == 0), 1)


LAUNCH = Launch()

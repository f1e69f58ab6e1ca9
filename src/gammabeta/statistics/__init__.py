"""Sources of a BatchNorm's statistics in training: one layer, several sources."""

from gammabeta.distributed.process_groups import groups
from gammabeta.statistics.batch import Batch
from gammabeta.statistics.ghost import Ghost
from gammabeta.statistics.renorm import Renorm
from gammabeta.statistics.running import Running
from gammabeta.statistics.source import Statistics
from gammabeta.statistics.synced import Synced

__all__ = ["Batch", "Ghost", "Renorm", "Running", "Statistics", "Synced", "groups"]

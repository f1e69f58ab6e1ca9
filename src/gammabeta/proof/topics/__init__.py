"""The topics: what is verified, one a file. A topic makes its cases for every operation and dtype.

A file says in its first line what it holds, and has `cases(op, dtype)`. To add one, write it and list it here.
"""

from gammabeta.proof.case import Cases
from gammabeta.proof.topics import bits, dtypes, finishes, layouts, masks, ranks, running, sizes, sources, values

TOPICS: dict[str, Cases] = {
    module.__name__.rpartition(".")[2]: module.cases
    for module in (values, masks, sizes, layouts, dtypes, finishes, running, sources, bits, ranks)
}

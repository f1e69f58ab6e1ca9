"""The processes of tests end, whatever happens in them."""

import os
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from tests.distributed.world import run


def note():
    Path(os.environ["NOTES"], f"{dist.get_rank()}").write_text(str(os.getpid()))


def fails():
    note()
    if dist.get_rank() == 1:
        raise ValueError("one fails, and the other waits for it")
    time.sleep(60)


def hangs():
    note()
    time.sleep(60)


def returns():
    note()
    return dist.get_rank(), dist.get_world_size()


def none_is_left(notes):
    noted = [int(path.read_text()) for path in notes.iterdir()]
    assert len(noted) == 2
    return not any(Path(f"/proc/{pid}").exists() for pid in noted)


pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")


def test_results_come_in_the_order_of_ranks(tmp_path):
    assert run("tests.distributed.test_world:returns", 2, {"NOTES": str(tmp_path)}) == [(0, 2), (1, 2)]
    assert none_is_left(tmp_path)


def test_one_that_fails_ends_the_others_and_is_heard(tmp_path):
    with pytest.raises(RuntimeError, match="one fails, and the other waits for it"):
        run("tests.distributed.test_world:fails", 2, {"NOTES": str(tmp_path)})
    assert none_is_left(tmp_path)


def test_those_that_hang_end_themselves_and_say_where(tmp_path):
    with pytest.raises(RuntimeError, match=r"test_world\.py\", line \d+ in hangs"):
        run("tests.distributed.test_world:hangs", 2, {"NOTES": str(tmp_path)}, limit=12)
    assert none_is_left(tmp_path)

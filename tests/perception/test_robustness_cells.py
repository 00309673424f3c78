"""Cells: planned, dealt out, claimed, and finished once."""

import itertools
import json
import multiprocessing
import os
import signal

import pytest

from bevstack.datasets.corruptions import Identity
from bevstack.perception.robustness.benchmark import Shard, run_cells, spread
from bevstack.perception.robustness.cells import Cell, plan
from bevstack.perception.robustness.store import CellStore

SETUP = {"model": "abc", "split": "val"}
CELLS = [Cell("suite", "fog", severity, Identity()) for severity in range(1, 8)]


def measure(cell: Cell) -> dict:
    result = {"parameters": cell.parameters, "scores": {"NDS": 0.5}, "seconds": 0.1}
    return {"name": cell.name, "severity": cell.severity, **result}


def silent(line: str) -> None:
    pass


def test_a_finished_cell_is_not_measured_again(tmp_path):
    done = []

    def counting(cell):
        done.append(cell.key)
        return measure(cell)

    assert run_cells(CELLS[:3], CellStore(tmp_path, SETUP), counting, Shard(), silent) == []
    assert run_cells(CELLS, CellStore(tmp_path, SETUP), counting, Shard(), silent) == []
    assert done == [cell.key for cell in CELLS]


def test_shards_take_every_cell_once_and_say_what_is_missing(tmp_path):
    done = []

    def counting(cell):
        done.append(cell.key)
        return measure(cell)

    store = CellStore(tmp_path, SETUP)
    left = run_cells(CELLS, store, counting, Shard.parse("1/3"), silent)
    assert done == [CELLS[1].key, CELLS[4].key]
    assert len(left) == 5
    run_cells(CELLS, store, counting, Shard(0, 3), silent)
    assert run_cells(CELLS, store, counting, Shard(2, 3), silent) == []
    assert sorted(done) == [cell.key for cell in CELLS]


@pytest.mark.parametrize("text", ["3/3", "1", "a/b", "-1/2", "0/0"])
def test_a_shard_that_does_not_exist_is_refused(text):
    with pytest.raises(ValueError, match="i/n with 0 <= i < n"):
        Shard.parse(text)


def test_a_cell_measured_with_other_parameters_is_not_finished(tmp_path):
    from bevstack.perception.robustness.attack import PatchAttack

    store = CellStore(tmp_path, SETUP)
    weak = Cell("attack", "patch", 1, Identity(), attack=PatchAttack(eps=8))
    store.write(weak, measure(weak))
    assert store.read(weak) is not None
    assert store.read(Cell("attack", "patch", 1, Identity(), attack=PatchAttack(eps=9))) is None


def test_cells_of_another_model_or_split_are_not_mixed(tmp_path):
    CellStore(tmp_path, SETUP)
    with pytest.raises(ValueError, match=r"split val \(now test\)"):
        CellStore(tmp_path, SETUP | {"split": "test"})


def hold_and_wait(folder, ready):
    with CellStore(folder, SETUP).claim(CELLS[0]) as mine:
        ready.put(mine)
        signal.pause()


def test_a_claim_keeps_others_away_until_its_process_is_killed(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Queue()
    process = context.Process(target=hold_and_wait, args=(tmp_path, ready))
    process.start()
    assert ready.get(timeout=30) is True
    store = CellStore(tmp_path, SETUP)
    with store.claim(CELLS[0]) as mine:
        assert mine is False
    left = run_cells(CELLS[:2], store, measure, Shard(), silent)
    assert left == [CELLS[0]]
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert run_cells(CELLS[:2], store, measure, Shard(), silent) == []


def test_a_measurement_that_fails_leaves_nothing_behind(tmp_path):
    def fail(cell):
        raise ValueError("out of memory")

    store = CellStore(tmp_path, SETUP)
    with pytest.raises(ValueError, match="out of memory"):
        run_cells(CELLS, store, fail, Shard(), silent)
    assert store.read(CELLS[0]) is None
    assert run_cells(CELLS[:1], store, measure, Shard(), silent) == []
    assert json.loads(store.path(CELLS[0]).read_text())["severity"] == 1


def test_the_plan_has_the_clean_run_first_and_every_cell_once():
    cells = plan(["multicorrupt", "robo3d"], cameras=("CAM_FRONT", "CAM_BACK"))
    assert cells[0].title == "clean"
    assert len({cell.key for cell in cells}) == len(cells)
    names = [cell.name for cell in cells if cell.group == "sensors"]
    assert names == [
        "LiDAR lost", "all cameras lost", "all cameras black", "CAM_FRONT lost", "CAM_BACK lost",
    ]  # fmt: skip
    assert [c.name for c in plan(["multicorrupt"], lidar=False) if c.group == "sensors"] == []


def test_the_plan_can_be_cut_to_corruptions_and_severities():
    cells = plan(["multicorrupt"], ["Points reducing"], [2], lidar=False)
    assert [(cell.name, cell.severity) for cell in cells[1:]] == [("pointsreducing", 2)]
    with pytest.raises(ValueError, match="no corruption suite"):
        plan(["imagenet_c"])
    with pytest.raises(ValueError, match="nothing to measure"):
        plan(["multicorrupt"], severities=[9], lidar=False)


@pytest.mark.parametrize(("total", "wanted"), [(10, 3), (10, 10), (10, 99), (7, 1), (81, 16)])
def test_frames_are_spread_evenly(total, wanted):
    chosen = spread(total, wanted)
    assert len(chosen) == min(total, wanted) == len(set(chosen.tolist()))
    gaps = [b - a for a, b in itertools.pairwise(chosen)]
    assert max(gaps, default=0) - min(gaps, default=0) <= 1
    assert chosen.min() >= 0
    assert chosen.max() < total

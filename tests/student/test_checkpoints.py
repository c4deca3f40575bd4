"""Checkpoints by ranks that are forks of this process; the engine writes a file for all and one a rank, as DeepSpeed's.

What a real engine's weights become is in test_kills, test_world_size and test_checkpoints_in_a_bucket.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed_kd.errors import RequestError, StoreError, WorkError
from distributed_kd.launch.watch import Watch
from distributed_kd.store.filesystem import Store
from distributed_kd.student import checkpoint
from distributed_kd.student.checkpoint import Checkpoints, Found
from tests.forked_ranks import in_ranks

MADE_FROM = {"trainer": {"learning_rate": 0.001, "seed": 3}}
COMMON = "mp_rank_00_model_states.pt"
STAGE_0: dict[str, Any] = {"zero_optimization": {"stage": 0}}
STAGE_2: dict[str, Any] = {"zero_optimization": {"stage": 2}, "checkpoint": {"other": 1}}


def file_of(rank: int) -> str:
    return f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"


class Engine:
    """Its state is the number that was last given to `save`."""

    def __init__(self, frozen: bool = False, saves: bool = True) -> None:
        self.module = torch.nn.Linear(2, 1)
        self.module.bias.requires_grad_(not frozen)
        self.saves, self.state, self.said = saves, "", {}

    def save_checkpoint(self, folder: str, tag: str, **said: Any) -> bool:
        self.said = said
        rank = torch.distributed.get_rank()
        Path(folder, tag).mkdir(parents=True, exist_ok=True)
        if rank == 0:
            Path(folder, tag, COMMON).write_text(self.state)
        Path(folder, tag, file_of(rank)).write_text(f"{self.state} of rank {rank}")
        torch.distributed.barrier()
        return self.saves

    def load_checkpoint(self, folder: str, tag: str, **said: Any) -> tuple[str | None, dict[str, Any]]:
        self.said = said
        own = Path(folder, tag, file_of(torch.distributed.get_rank()))
        if not own.exists():
            return None, {}
        self.state = f"{Path(folder, tag, COMMON).read_text()}, {own.read_text()}"
        return str(own), {}


def metrics_of(steps: int, **losses: float) -> list[dict[str, Any]]:
    """losses: like `after_2=1.5`, the held-out one after that step."""
    known = {int(name.removeprefix("after_")): loss for name, loss in losses.items()}
    return [{"step": step} | ({"held_out_loss": known[step + 1]} if step + 1 in known else {}) for step in range(steps)]


def made(folder: Path, watch: Watch, bucket: Path | None = None, keep: int = 2, **said: Any) -> Checkpoints:
    store = None if bucket is None else Store(str(bucket))
    return Checkpoints(folder, keep, said.get("made_from", MADE_FROM), store, watch, "student")


def saved(folder: Path, *steps: int, bucket: Path | None = None, keep: int = 2, **losses: float) -> Callable[..., Any]:
    def deed(watch: Watch) -> None:
        checkpoints, engine = made(_of(folder, watch), watch, bucket, keep), Engine()
        for step in steps:
            engine.state = f"after {step}"
            checkpoints.save(engine, step, metrics_of(step, **losses))
        checkpoints.wait()

    return deed


def _of(folder: Path, watch: Watch) -> Path:
    """`{}` in a folder's name is the rank: hosts with disks of their own."""
    return Path(str(folder).format(watch.rank))


def save(folder: Path, *steps: int, world: int = 2, **said: Any) -> None:
    assert in_ranks(world, saved(folder, *steps, **said)) == [None] * world


def found_by(folder: Path, config: dict[str, Any], bucket: Path | None, said: dict[str, Any], watch: Watch) -> Any:
    """(what is found, the state that it gives, the config afterwards)."""
    checkpoints, engine, own = made(_of(folder, watch), watch, bucket, **said), Engine(), dict(config)
    found = checkpoints.find(own)
    if found is not None:
        checkpoints.load(engine, found)
    return found, engine.state, own


def find(
    folder: Path, world: int = 2, config: dict[str, Any] = STAGE_0, bucket: Path | None = None, **said: Any
) -> Any:
    return in_ranks(world, partial(found_by, folder, config, bucket, said))


def there(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def of_steps(*steps: int) -> list[str]:
    return [name for step in steps for name in (f"step-{step:08d}", f"step-{step:08d}.json")]


def test_the_last_ones_are_kept_and_the_newest_is_found_by_every_rank(tmp_path: Path) -> None:
    assert find(tmp_path) == [(None, "", STAGE_0)] * 2
    save(tmp_path, 2, 4, 6)
    assert there(tmp_path) == of_steps(4, 6)
    tag = "step-00000006"
    sizes = {name: (tmp_path / tag / name).stat().st_size for name in (COMMON, file_of(0), file_of(1))}
    assert json.loads((tmp_path / f"{tag}.json").read_text()) == {
        "step": 6, "world": 2, "files": sizes, "made_from": MADE_FROM, "metrics": metrics_of(6)
    }  # fmt: skip
    assert find(tmp_path) == [
        (Found(tag, 6, metrics_of(6)), f"after 6, after 6 of rank {rank}", STAGE_0) for rank in (0, 1)
    ]


@pytest.mark.parametrize("damage", ["no marker", "a file is gone", "a file is cut"])
def test_what_is_not_complete_is_passed_over(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 2, 4)
    own = tmp_path / "step-00000004" / file_of(1)
    if damage == "no marker":
        (tmp_path / "step-00000004.json").unlink()
    elif damage == "a file is gone":
        own.unlink()
    else:
        own.write_text(own.read_text()[:-1])
    assert [found.step for found, *_ in find(tmp_path)] == [2, 2]
    if damage == "no marker":  # and it goes once a later one is there
        save(tmp_path, 6)
        assert there(tmp_path) == of_steps(2, 6)


def test_the_best_is_kept_beside_the_last(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4, 5, keep=1, after_2=1.5, after_3=1.75, after_5=2.0)
    assert there(tmp_path) == ["best.json", *of_steps(2, 5)]
    assert json.loads((tmp_path / "best.json").read_text()) == {"step": 2}
    save(tmp_path, 6, keep=1, after_6=1.25)
    assert there(tmp_path) == ["best.json", *of_steps(6)]
    assert json.loads((tmp_path / "best.json").read_text()) == {"step": 6}


def test_a_run_that_began_again_writes_over_what_was_there(tmp_path: Path) -> None:
    save(tmp_path, 2, 4)
    (tmp_path / "step-00000002" / "left over").touch()
    (tmp_path / "step-00000002.universal").mkdir()
    save(tmp_path, 2)
    assert there(tmp_path) == of_steps(2, 4)
    assert there(tmp_path / "step-00000002") == [COMMON, file_of(0), file_of(1)]


def test_another_students_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 2)
    errors = find(tmp_path, made_from={"trainer": {"learning_rate": 0.002, "seed": 3}})
    assert [type(error) for error in errors] == [RequestError] * 2
    assert str(errors[0]) == (
        f"{tmp_path}/step-00000002.json is of a student made from something else (trainer.learning_rate: 0.001, not "
        "0.002); choose another `workdir`, or delete that folder to begin anew"
    )


def test_an_engine_that_does_not_save_or_load_is_an_error(tmp_path: Path) -> None:
    def unsaved(watch: Watch) -> None:
        made(tmp_path, watch).save(Engine(saves=False), 2, metrics_of(2))

    def unloaded(watch: Watch) -> None:
        made(tmp_path, watch).load(Engine(), Found("step-00000009", 9, []))

    (error,) = in_ranks(1, unsaved)
    assert isinstance(error, WorkError) and str(error) == f"DeepSpeed did not save checkpoint {tmp_path}/step-00000002"
    assert find(tmp_path, world=1) == [(None, "", STAGE_0)]
    (error,) = in_ranks(1, unloaded)
    assert isinstance(error, WorkError) and str(error) == (
        f"DeepSpeed could not load checkpoint {tmp_path}/step-00000009; delete it to go on from the one before"
    )


def test_frozen_parameters_are_neither_saved_nor_asked_for(tmp_path: Path) -> None:
    def deed(watch: Watch) -> list[Any]:
        said = []
        for frozen in (False, True):
            checkpoints, engine = made(tmp_path, watch), Engine(frozen)
            checkpoints.save(engine, 2, metrics_of(2))
            said.append(engine.said)
            checkpoints.load(engine, Found("step-00000002", 2, []))
            said.append(engine.said)
        return said

    saves = {"save_latest": False, "exclude_frozen_parameters": True}
    assert in_ranks(1, deed) == [[saves, {"load_module_strict": True}, saves, {"load_module_strict": False}]]


def test_another_number_of_ranks_reads_it_whole_where_it_is_divided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(source: Path, target: Path) -> None:
        """DeepSpeed's own takes seconds: test_world_size."""
        with (tmp_path / "converted").open("a") as file:
            file.write(f"{source.name} to {target.name}\n")
        shutil.copytree(source, target)

    monkeypatch.setattr(checkpoint, "convert", convert)
    folder = tmp_path / "checkpoints"
    save(folder, 2, 4, world=3)
    whole = {**STAGE_2, "checkpoint": {"other": 1, "load_universal": True}}
    for _ in range(2):  # it is made once
        assert find(folder, config=STAGE_2) == [
            (Found("step-00000004.universal", 4, metrics_of(4)), f"after 4, after 4 of rank {rank}", whole)
            for rank in (0, 1)
        ]
    assert (tmp_path / "converted").read_text() == "step-00000004 to step-00000004.universal\n"
    # As many ranks read what they wrote, and where nothing is divided every number of them does.
    same = find(folder, world=3, config=STAGE_2)
    assert [(found.tag, config) for found, _, config in same] == [("step-00000004", STAGE_2)] * 3
    assert [found.tag for found, *_ in find(folder, config=STAGE_0)] == ["step-00000004"] * 2
    assert [found.tag for found, *_ in find(folder, config={"zero_optimization": {}})] == ["step-00000004"] * 2
    # All files are wanted to make it whole, those of ranks that are no more among them.
    (folder / "step-00000004" / file_of(2)).unlink()
    assert [found.step for found, *_ in find(folder, config=STAGE_2)] == [2, 2]
    assert [found.step for found, *_ in find(folder, config=STAGE_0)] == [4, 4]
    # Both go when a later one is there.
    save(folder, 6, 8)
    assert there(folder) == of_steps(6, 8)


def test_hosts_with_disks_of_their_own_get_from_the_bucket_what_they_lack(tmp_path: Path) -> None:
    disk, bucket = tmp_path / "disk-{}", tmp_path / "bucket"
    save(disk, 2, 4, 6, bucket=bucket)
    assert there(bucket) == of_steps(4, 6)
    assert there(bucket / "step-00000006") == [COMMON, file_of(0), file_of(1)]
    assert there(tmp_path / "disk-0" / "step-00000006") == [COMMON, file_of(0)]
    assert there(tmp_path / "disk-1" / "step-00000006") == [file_of(1)]
    shutil.rmtree(tmp_path / "disk-1")  # a new host, which gets its own rank's file, and the common one
    expected = [
        (Found("step-00000006", 6, metrics_of(6)), f"after 6, after 6 of rank {rank}", STAGE_0) for rank in (0, 1)
    ]
    assert find(disk, bucket=bucket) == expected
    assert there(tmp_path / "disk-1") == of_steps(6)
    assert there(tmp_path / "disk-1" / "step-00000006") == [COMMON, file_of(1)]
    # What the bucket has not got is found where every host has its part.
    shutil.rmtree(bucket)
    assert find(disk, bucket=bucket) == expected
    # One of them alone does not do: the one before, or none, is gone on from.
    shutil.rmtree(tmp_path / "disk-1")
    assert find(disk, bucket=bucket) == [(None, "", STAGE_0)] * 2


def test_another_students_in_the_bucket_is_named_there(tmp_path: Path) -> None:
    save(tmp_path / "disk", 2, bucket=tmp_path / "bucket")
    shutil.rmtree(tmp_path / "disk")
    errors = find(tmp_path / "disk", bucket=tmp_path / "bucket", made_from={})
    assert [type(error) for error in errors] == [RequestError] * 2
    assert str(errors[1]).startswith(f"{tmp_path}/bucket/step-00000002.json is of a student made from something else")


@pytest.mark.parametrize("rank", [0, 1])
def test_an_upload_that_fails_is_said_and_the_next_one_is_tried(
    tmp_path: Path, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On whichever host: then no marker tells of it, and training goes on."""
    put, said = Store.put_file, []

    def fails(store: Store, path: str, name: str) -> None:
        if name == f"step-00000002/{file_of(rank)}":
            raise StoreError("the disk of the bucket is full")
        put(store, path, name)

    def deed(watch: Watch) -> list[str]:
        checkpoints, engine = made(tmp_path / f"disk-{watch.rank}", watch, tmp_path / "bucket"), Engine()
        for step in (2, 4):
            checkpoints.save(engine, step, metrics_of(step))
            checkpoints.wait()
        return said

    monkeypatch.setattr(Store, "put_file", fails)
    monkeypatch.setattr("distributed_kd.console.say", said.append)
    line = (
        f"train: checkpoint step-00000002 did not get into {tmp_path}/bucket: the disk of the bucket is full; training "
        "goes on, and it is on the disks of its hosts alone"
    )
    assert in_ranks(2, deed) == [[line], []]
    assert there(tmp_path / "bucket") == of_steps(4)
    assert [name for name in there(tmp_path / "disk-0") if name.endswith(".json")] == [
        "step-00000002.json", "step-00000004.json"
    ]  # fmt: skip

"""TensorBoard's files hold each step once, also where a training went on from an earlier one."""

from __future__ import annotations

from pathlib import Path

from distributed_kd.student.tracking import Curves


def test_a_resumed_run_writes_over_what_came_after_its_step(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = Curves(tmp_path, "name: x\n", 0)
    for step in range(8):
        first.add({"step": step, "loss": float(step), "seconds": 1.0})
    first.close()
    second = Curves(tmp_path, "name: x\n", 5)
    for step in range(5, 10):
        second.add({"step": step, "loss": 100.0 + step, "seconds": 1.0})
    second.close()
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    assert sorted(found.Tags()["scalars"]) == ["train/loss", "train/seconds"]
    assert [(event.step, event.value) for event in found.Scalars("train/loss")] == [
        *((step, float(step)) for step in range(5)),
        *((step, 100.0 + step) for step in range(5, 10)),
    ]
    assert b"name: x" in found.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0]

"""What every rank runs, whatever launched it: `python -m distributed_kd.student.worker NOTES`, or `work(NOTES)` in Ray.

NOTES is the folder in which `dkd train` says what is to be done, and the ranks say how it goes (`launch/ranks.py`).
The launcher gives RANK, WORLD_SIZE and the rendezvous in the environment, as torchrun does.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from distributed_kd import cache
from distributed_kd.cache.following import follow
from distributed_kd.cache.manifest import store_of
from distributed_kd.corpus.sequences import Sequences
from distributed_kd.errors import DkdError
from distributed_kd.launch.group import joined_ranks, print_line
from distributed_kd.launch.ranks import Notes, carried, stop_heard
from distributed_kd.launch.stop import after_the_last_step, on_stop
from distributed_kd.launch.watch import Verdict, Watch
from distributed_kd.models.locate import cache_folder
from distributed_kd.recipe import Recipe, parse
from distributed_kd.store.digest import fingerprint
from distributed_kd.store.disk_cache import DiskCache
from distributed_kd.store.filesystem import Store
from distributed_kd.store.folder import put_folder
from distributed_kd.store.manifest import Run, peak_memory_bytes
from distributed_kd.student import artifact, loop
from distributed_kd.student.build import load_student, student_folder
from distributed_kd.student.checkpoint import Checkpoints
from distributed_kd.student.engine import deepspeed_config, start_engine, zero_stage
from distributed_kd.student.export import gather_weights, write_adapters, write_export
from distributed_kd.student.flops import work_of
from distributed_kd.student.held_out import held_out_sequences
from distributed_kd.student.identity import SequenceDigests
from distributed_kd.student.labelled_rows import LabelledRows
from distributed_kd.student.model import DistillationModel
from distributed_kd.student.order import GlobalOrder
from distributed_kd.student.position_weights import PositionWeights
from distributed_kd.student.stream import Stream, TrainingRows
from distributed_kd.student.trackers import Tracking


def run(recipe: Recipe, arm: str, notes: Path, begun: float, watch: Watch) -> None:
    """Trains one arm and writes its artifact, all ranks of the process group together; rank 0 is the last to return.

    `begun` is when it was launched, in Unix time. Raises `Stopped` where any rank is asked to stop meanwhile: before
    the first step, between two, or when all is written.
    """
    with on_stop(lambda _: watch.asked_to_stop.set()):
        _run(recipe, arm, notes, begun, watch)
        watch.meet(f"{arm} written")
        if watch.rank == 0:
            watch.tell(f"{arm} stop", str(watch.asked_to_stop.is_set()))
        if watch.ask(f"{arm} stop") == str(True):
            raise after_the_last_step(arm)


def _run(recipe: Recipe, arm: str, notes: Path, begun: float, watch: Watch) -> None:
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    recipe = artifact.arm_recipe(recipe, arm)
    workdir = Store(recipe.workdir)
    store = workdir.child(arm)
    logits = open_rows(recipe)
    made_from = artifact.made_from_of(recipe, logits.fingerprint, artifact.start_of(recipe.student))
    folder = student_folder(recipe)

    model = load_student(recipe, folder, is_first=rank == 0)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    config = deepspeed_config(recipe.trainer, world)
    steps = number_of_steps(recipe, len(logits))
    wrapped = DistillationModel(model, recipe.objective, zero_stage(config))
    key = fingerprint(made_from)
    checkpoints = Checkpoints(
        artifact.local_folder(store, artifact.CHECKPOINTS, key), recipe.trainer.keep_checkpoints, made_from,
        None if store.is_local else store.child(artifact.CHECKPOINTS), watch, arm,
    )  # fmt: skip
    found = checkpoints.find(config)
    engine = start_engine(wrapped, recipe.trainer, config, steps)
    resumed, metrics = (0, []) if found is None else (found.step, found.metrics)
    if found is not None:
        checkpoints.load(engine, found)
    sequences = Sequences.of(recipe)
    stream = open_stream(recipe, logits, sequences, rank, world)
    tracking = Tracking(recipe, arm, store, key, resumed) if rank == 0 else None

    def report(metrics: list[dict[str, Any]]) -> None:
        if tracking is not None:
            tracking.add(metrics[-1])
            _show_progress(notes, metrics, steps)

    held_out = None
    if recipe.trainer.evaluate_every:
        held_out = held_out_sequences(sequences, recipe.trainer.evaluate_sequences)
    work = work_of(parameters, trained, engine.device)
    asked = watch.asked_to_stop.is_set
    with tracking or nullcontext():
        todo = range(resumed, steps)
        meet = watch.meet if recipe.trainer.follow else None
        loop.train(
            engine, stream, recipe.trainer, todo, metrics, checkpoints, report, asked, held_out, work, meet, store
        )

    weights = gather_weights(model, trained_alone=recipe.student.lora is not None)
    checkpoints.wait()
    if rank == 0:
        with tempfile.TemporaryDirectory() as temporary:
            if recipe.student.lora is None:
                write_export(model, weights, folder, Path(temporary))
            else:
                write_adapters(recipe, model, weights, folder, Path(temporary))
            put_folder(Path(temporary), store, artifact.EXPORT)
        store.remove_leftovers("")
        artifact.put_metrics(store, metrics)
        before = sum(line["seconds"] for line in metrics[:resumed])
        seconds = before + time.time() - begun
        Run(seconds, peak_memory_bytes(), seconds * world).put(store)
        artifact.StudentManifest(
            made_from=made_from,
            fingerprint=key,
            arm=arm,
            steps=steps,
            sequences_seen=steps * recipe.trainer.global_batch,
            parameters=parameters,
            trained_parameters=trained,
            tokenizer_sha256=logits.inputs_sha256,
        ).put(store)


def open_rows(recipe: Recipe) -> TrainingRows:
    """The cache, finished, or with `trainer.follow` in work; without teachers the sequences.

    Raises `RequestError`, `WorkError` where it is not there.
    """
    if not recipe.teachers:
        return LabelledRows(Sequences.of(recipe), recipe.objective.temperature)
    store = store_of(recipe)
    return follow(store, Sequences.of(recipe).shards("train")) if recipe.trainer.follow else cache.open(store)


def open_stream(recipe: Recipe, logits: TrainingRows, sequences: Sequences, rank: int, world: int) -> Stream:
    trainer = recipe.trainer
    order = GlobalOrder(logits.fingerprint, trainer.seed, logits.entries.rows, trainer.global_batch)
    return Stream(
        logits, order, rank=rank, world=world,
        micro_batch=trainer.micro_batch, temperature=recipe.objective.temperature,
        weighting=PositionWeights.of(recipe.objective, sequences.manifest.splits["train"].unlabelled),
        sequences=SequenceDigests(sequences), disk=_disk(recipe, logits.store),
    )  # fmt: skip


def _disk(recipe: Recipe, store: Store) -> DiskCache | None:
    """None where the cache is on a disk already."""
    limit = int(recipe.trainer.disk_cache_gib * 2**30)
    return DiskCache(cache_folder() / "shards", limit) if limit and not store.is_local else None


def number_of_steps(recipe: Recipe, sequences: int) -> int:
    """Optimizer steps: as said, or whole batches in so many epochs of the cache's sequences."""
    if recipe.trainer.steps is not None:
        return recipe.trainer.steps
    assert recipe.trainer.epochs is not None
    return recipe.trainer.epochs * sequences // recipe.trainer.global_batch


def _show_progress(notes: Path, metrics: list[dict[str, Any]], steps: int) -> None:
    """Leaves it where the launcher looks for it."""
    last = metrics[-1]
    rate = f"{last['positions_per_second']:,.0f} positions/s"
    note = f"loss {last['loss']:.3f}, {rate}, data wait {last['data_wait']:.0%}"
    temporary = notes / "progress.json.tmp"
    temporary.write_text(json.dumps({"done": len(metrics), "total": steps, "note": note}))
    temporary.replace(notes / "progress.json")


def work(notes_uri: str) -> None:
    """What a rank does that `dkd train` has started, on whatever host."""
    notes = Notes(notes_uri)
    spec = notes.spec()
    recipe = parse(spec.recipe)
    rank = int(os.environ["RANK"])

    def tell(verdict: Verdict) -> None:
        print_line(verdict)
        notes.tell_error(rank, verdict)

    with (
        joined_ranks(recipe.trainer.timeout_minutes, tell, debug=True) as watch,
        tempfile.TemporaryDirectory(prefix="dkd-rank-") as own,
        carried(Path(own), notes),
        stop_heard(notes, watch.asked_to_stop) if rank == 0 else nullcontext(),
    ):
        run(recipe, spec.arm, Path(own), spec.begun, watch)


def main() -> None:
    try:
        work(sys.argv[1])
    except DkdError as error:  # before the ranks were joined: the launcher ends the others once this one is gone
        verdict = Verdict("refused", str(error), error.exit_code)
        print_line(verdict)
        Notes(sys.argv[1]).tell_error(int(os.environ["RANK"]), verdict)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()

"""Gloo ranks that are forks of this very process, so of the code that it has: for tests that take a moment."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

import torch

from distributed_kd.launch.group import joined_ranks, print_line
from distributed_kd.launch.watch import Watch
from tests.buckets import free_port

_FORKS = multiprocessing.get_context("fork")
_SECONDS = 60.0


def in_ranks(world: int, deed: Callable[[Watch], Any]) -> list[Any]:
    """What `deed` gives on each rank, by rank, or the error that it raised there; the ranks are joined, and watched."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world)}
    pipes = [_FORKS.Pipe(duplex=False) for _ in range(world)]
    ranks = [
        _FORKS.Process(
            target=_run, args=(place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, deed, pipe), daemon=True
        )
        for rank, (_, pipe) in enumerate(pipes)
    ]
    for rank in ranks:
        rank.start()
    try:
        assert all(pipe.poll(_SECONDS) for pipe, _ in pipes), "a rank did not answer"
        return [pipe.recv() for pipe, _ in pipes]
    finally:
        for rank in ranks:
            rank.join(5.0)
            rank.kill()


def _run(place: dict[str, str], deed: Callable[[Watch], Any], answer: Any) -> None:
    os.environ.update(place)
    torch.set_num_threads(1)
    with joined_ranks(0.2, print_line, debug=True) as watch:
        try:
            found = deed(watch)
        except Exception as error:
            found = error
        answer.send(found)

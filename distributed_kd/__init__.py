"""Distributed KD: run the teacher once, cache its top-k logits, train students from the cache.

Four stages, one direction: prepare (corpus/) -> cache (teacher/) -> train (student/) -> evaluate.
Importing this package imports nothing heavy; torch, ray and transformers come with the stage that uses them, and with
the names below, which are what other code may use of it (`docs/use-a-part.md`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed_kd.models.parts import Head
    from distributed_kd.student.dataset import CacheDataset, Collator
    from distributed_kd.student.distillation import distillation_loss
    from distributed_kd.student.objective import linear_distillation_loss
    from distributed_kd.student.order import GlobalOrder
    from distributed_kd.student.position_targets import PositionTargets
    from distributed_kd.student.trainer_mixin import DistillationMixin

__version__ = "0.1.0"

__all__ = [
    "CacheDataset",
    "Collator",
    "DistillationMixin",
    "GlobalOrder",
    "Head",
    "PositionTargets",
    "distillation_loss",
    "linear_distillation_loss",
]

_WHERE = {
    "CacheDataset": "student.dataset",
    "Collator": "student.dataset",
    "DistillationMixin": "student.trainer_mixin",
    "GlobalOrder": "student.order",
    "Head": "models.parts",
    "PositionTargets": "student.position_targets",
    "distillation_loss": "student.distillation",
    "linear_distillation_loss": "student.objective",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)

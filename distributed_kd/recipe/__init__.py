"""Recipes: what a user asks for, as validated models, a file a section. Importable without torch.

`load(path, overrides)` reads YAML, applies `key.path=value` overrides and returns a `Recipe`, or raises
`RequestError` with one line that names the key. Relative local paths stay relative to the current directory.
"""

from distributed_kd.recipe.capture import Capture
from distributed_kd.recipe.corpus import Corpus
from distributed_kd.recipe.evaluate import Baseline, Evaluate
from distributed_kd.recipe.objective import Objective
from distributed_kd.recipe.reading import dump, load, makers, parse, refuse_secrets
from distributed_kd.recipe.student import Lora, Student
from distributed_kd.recipe.targets import Targets
from distributed_kd.recipe.teacher import Teacher
from distributed_kd.recipe.trainer import Trainer
from distributed_kd.recipe.whole import Recipe

__all__ = [
    "Baseline",
    "Capture",
    "Corpus",
    "Evaluate",
    "Lora",
    "Objective",
    "Recipe",
    "Student",
    "Targets",
    "Teacher",
    "Trainer",
    "dump",
    "load",
    "makers",
    "parse",
    "refuse_secrets",
]

"""The house's rule: data flows one way, so a stage imports only what all stand on and the artifact before it."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "distributed_kd"
SHARED = {"__version__", "errors", "recipe", "console", "bundled", "store", "models", "launch", "kernels"}
# Stage folder -> what it may import besides itself and what is shared. Whole folders, or single files of one.
ALLOWED = {
    "corpus": set(),
    "cache": {"corpus.sequences"},
    "teacher": {"corpus.sequences", "corpus.batch", "cache"},
    "student": {"corpus.sequences", "corpus.batch", "cache"},
    "evaluate": {"corpus.sequences", "corpus.batch", "cache", "student.artifact"},
    "store": set(),
    "models": set(),
    "kernels": set(),
}


def imports_of(path: Path) -> set[str]:
    """Dotted names inside the package that a file imports, at the top or in a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "distributed_kd":
            base = node.module.removeprefix("distributed_kd").lstrip(".")
            found |= {f"{base}.{alias.name}".lstrip(".") for alias in node.names}
    return found


def test_a_stage_imports_only_the_reader_of_the_artifact_before_it() -> None:
    wrong = []
    for folder, allowed in ALLOWED.items():
        for path in sorted((PACKAGE / folder).rglob("*.py")):
            for name in sorted(imports_of(path)):
                inside = name.split(".")[0]
                fits = any(name == entry or name.startswith(f"{entry}.") for entry in allowed)
                if inside not in SHARED | {folder} and not fits:
                    wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong, "\n".join(wrong)

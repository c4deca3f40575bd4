"""How many small changes to the code of the cache, the objective or the resumed training the fast tests notice.

    python benchmarks/mutants.py [--group cache|training|resume] [--sample 200] [--seed 0] [--module PART ...] [--show]

Mutation testing, by mutants that cosmic-ray's operators make (`pip install 'distributed-kd[mutants]'`). Each is tested
in a fork of this process, which has imported what the package imports, with kernels interpreted: nothing is compiled
again. A run of the unchanged code comes first; tests that take longer than `_SLOWEST` says, or that read the code in
another process, are left out, the rest runs quickest first until one fails. A mutant that a test fails on, that cannot
be imported, or that takes too long is killed.

Left out, since no test could tell: annotations of functions and variables, decorators that change nothing here, `is`
for `==` and back, and the wording of errors.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import gc
import hashlib
import importlib.abc
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "distributed_kd"
MODULES = {
    "cache": [  # but `compiled.py`, which does nothing where kernels are interpreted
        *(path for path in sorted(PACKAGE.glob("cache/codecs/*.py")) if path.name != "compiled.py"),
        PACKAGE / "cache" / "manifest.py",
        *sorted(PACKAGE.glob("store/*.py")),
    ],
    "training": [
        PACKAGE / "student" / f"{name}.py"
        for name in ("objective", "chunk_gradient", "divergence", "order", "position_targets", "position_weights")
    ],
    "resume": [PACKAGE / "student" / f"{name}.py" for name in ("checkpoint", "checkpoint_files", "loop", "upload")],
}
TESTS = {
    "cache": ("tests/cache", "tests/store"),
    "training": ("tests/student",),
    "resume": tuple(f"tests/student/test_{name}.py" for name in ("checkpoints", "loop", "spikes")),
}
_IMPORTED_ONCE = (
    "fsspec.implementations.local", "hypothesis", "pandas", "pyarrow.ipc", "pyarrow.parquet", "pydantic", "pytest",
    "pytest_timeout", "torch", "zstandard",
)  # fmt: skip
_SLOWEST = {"cache": 1, "training": 1, "resume": 10}  # seconds a test may take, kernels interpreted
_OTHER_PROCESS = ("test_interpreted_kernels", "the_specification_is_enough", "test_the_command", "hostile_caches")
_MINUTES = ("test_added_kl", "test_damaged_streams", "a_killed_writer")  # when they are interpreted
_TIMES = 3  # a mutant may take so many times what all tests take


@dataclass(frozen=True)
class Mutant:
    path: Path
    operator: str
    occurrence: int
    line: int

    @property
    def module(self) -> str:
        return ".".join(self.path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def mutants_of(path: Path) -> list[Mutant]:
    from cosmic_ray import plugins
    from cosmic_ray.ast import ast_nodes, get_ast

    source = path.read_text()
    nodes = list(ast_nodes(get_ast(source)))
    unseen = list(_unseen(ast.parse(source)))
    found = []
    for name in sorted(plugins.operator_names()):
        _, *sides = name.split("_")
        if plugins.get_operator(name).arguments() or {"Is", "IsNot"} & {*sides} not in (set(), {*sides}):
            continue
        operator = plugins.get_operator(name)()
        occurrence = 0
        for node in nodes:
            for start, _ in operator.mutation_positions(node):
                if not any(begin <= start < end for begin, end in unseen):
                    found.append(Mutant(path, name, occurrence, start[0]))
                occurrence += 1
    return found


def _unseen(tree: ast.Module) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Where no test could see a change: (begin, end) as (line, column)."""
    checked = any(isinstance(node, ast.ImportFrom) and node.module == "pydantic" for node in ast.walk(tree))
    hidden: list[ast.expr | None] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            hidden += [node.returns, *(argument.annotation for argument in arguments)]
        elif isinstance(node, ast.AnnAssign) and not checked:
            hidden.append(node.annotation)
        elif isinstance(node, ast.Raise):
            hidden += [one for one in ast.walk(node) if isinstance(one, ast.JoinedStr)]
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            for one in node.decorator_list:
                if ast.unparse(one).split("(")[0] in ("compiled", "inlined", "lru_cache"):
                    yield (one.lineno, 0), (one.end_lineno or 0, 1 << 20)
    for one in hidden:
        if one is not None:
            yield (one.lineno, one.col_offset), (one.end_lineno or 0, one.end_col_offset or 0)


def source_of(mutant: Mutant) -> str:
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    changed = mutate_code(mutant.path.read_text(), get_operator(mutant.operator)(), mutant.occurrence)
    assert changed is not None
    return str(changed)


class _Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from other source than its file's."""

    def __init__(self, mutant: Mutant, source: str) -> None:
        self.mutant, self.source = mutant, source

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.mutant.module:
            return None
        return importlib.util.spec_from_file_location(name, self.mutant.path, loader=self)

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.source, str(self.mutant.path), "exec"), module.__dict__)


class _Quickest:
    """A pytest plugin: measures tests, or runs those that were measured, the quickest first."""

    def __init__(self, seconds: dict[str, float] | None) -> None:
        self.known = seconds
        self.seconds: Counter[str] = Counter()

    def pytest_collection_modifyitems(self, items: list) -> None:
        known = self.known
        items[:] = [item for item in items if not any(part in item.nodeid for part in (*_OTHER_PROCESS, *_MINUTES))]
        items[:] = [item for item in items if "code" not in item.fixturenames]  # tables that take minutes, too
        if known is not None:
            items[:] = sorted((item for item in items if item.nodeid in known), key=lambda item: known[item.nodeid])

    def pytest_runtest_logreport(self, report) -> None:  # type: ignore[no-untyped-def]
        self.seconds[report.nodeid] += report.duration


def forked(run, seconds: float) -> tuple[int | None, str]:  # type: ignore[no-untyped-def]
    """(exit status of `run` in a fork, None where it took longer, what it printed)."""
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            os.setsid()
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            status = 99
            try:
                status = int(run())
            finally:
                sys.stdout.flush()
                os._exit(status)
        end = time.monotonic() + seconds
        status = None
        while time.monotonic() < end and status is None:
            finished, found = os.waitpid(child, os.WNOHANG)
            if finished:
                status = os.waitstatus_to_exitcode(found)
            time.sleep(0.02)
        if status is None:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
        output.seek(0)
        return status, output.read().decode(errors="replace")


def pytest_run(plugin: _Quickest, tests: tuple[str, ...], *options: str) -> int:
    import pytest

    plain = ("-q", "--tb=no", "--assert=plain", "-p", "no:cacheprovider", "-p", "pytest_timeout")
    return int(pytest.main([*plain, "-m", "not slow", *options, *tests], plugins=[plugin]))


def measure(tests: tuple[str, ...], slowest: float) -> dict[str, float]:
    """Seconds of each test of the unchanged code, without the slow ones; kept for as long as nothing changes."""
    files = [path for part in ("distributed_kd", "tests") for path in sorted((ROOT / part).rglob("*.py"))]
    digest = hashlib.sha256(repr(tests).encode() + b"".join(map(Path.read_bytes, files))).hexdigest()
    times = Path(tempfile.gettempdir()) / f"mutants-{digest}.json"
    if times.exists():
        return json.loads(times.read_text())
    raw = times.with_suffix(".raw")

    def run() -> int:
        plugin = _Quickest(None)
        status = pytest_run(plugin, tests)
        raw.write_text(json.dumps(plugin.seconds))
        return status

    status, said = forked(run, 1200)
    if status != 0:
        raise SystemExit(said[-4000:])
    found = {name: seconds for name, seconds in json.loads(raw.read_text()).items() if seconds <= slowest}
    plugin = _Quickest(found)
    status, said = forked(lambda: pytest_run(plugin, tests, "-x"), 1200)
    if status != 0:
        raise SystemExit(f"the unchanged code fails:\n{said[-4000:]}")
    times.write_text(json.dumps(found))
    return found


def killed(mutant: Mutant, tests: tuple[str, ...], known: dict[str, float], seconds: float) -> tuple[bool, str]:
    """(whether a test noticed, by what)."""
    source = source_of(mutant)

    def run() -> int:
        sys.meta_path.insert(0, _Changed(mutant, source))
        return pytest_run(_Quickest(known), tests, "-x")

    status, said = forked(run, seconds)
    if status is None:
        return True, "time"
    failed = [line.split(" - ")[0] for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return status != 0, failed[0] if failed else f"exit {status}"


def change_of(mutant: Mutant) -> str:
    lines = difflib.unified_diff(mutant.path.read_text().splitlines(), source_of(mutant).splitlines(), n=0, lineterm="")
    return "\n".join(f"    {line}" for line in list(lines)[3:])


def main() -> None:
    parser = argparse.ArgumentParser(description="Mutation testing by the fast tests.")
    parser.add_argument("--group", choices=sorted(MODULES), default="cache", help="the code that is changed")
    parser.add_argument("--sample", type=int, help="so many, drawn over all modules; without, every one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--module", action="append", help="only modules with this in their name")
    parser.add_argument("--show", action="store_true", help="every mutant as it is tested, not survivors alone")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.chdir(ROOT)
    sys.dont_write_bytecode = False
    os.environ |= {
        "DKD_INTERPRET_KERNELS": "1", "TRITON_INTERPRET": "1", "DKD_TEST_SEED": "0", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }  # fmt: skip
    sys.path.insert(0, str(ROOT))
    for name in _IMPORTED_ONCE:
        importlib.import_module(name)
    assert not any(name.startswith("distributed_kd") for name in sys.modules)
    gc.freeze()
    tests = TESTS[options.group]
    paths = [
        path
        for path in MODULES[options.group]
        if not options.module or any(part in str(path) for part in options.module)
    ]
    mutants = [mutant for path in paths for mutant in mutants_of(path)]
    drawn = mutants
    if options.sample is not None and options.sample < len(mutants):
        drawn = random.Random(options.seed).sample(mutants, options.sample)
    print(f"{len(drawn)} of {len(mutants)} mutants, seed {options.seed}", file=sys.stderr)
    known = measure(tests, _SLOWEST[options.group])
    total = sum(known.values())
    print(f"{len(known)} tests of {total:.1f} s", file=sys.stderr)
    dead: Counter[str] = Counter()
    survivors = []
    for number, mutant in enumerate(drawn):
        is_dead, by = killed(mutant, tests, known, 20 + _TIMES * total)
        dead[mutant.module] += is_dead
        if not is_dead:
            survivors.append(mutant)
        if options.show or not is_dead:
            state = f"killed by {by}" if is_dead else "SURVIVED"
            print(f"{number} {mutant.module}:{mutant.line} {mutant.operator} {mutant.occurrence}: {state}", flush=True)
            print(change_of(mutant), flush=True)
    every = Counter(mutant.module for mutant in drawn)
    if options.json:
        alive = [f"{one.module}:{one.line} {one.operator} {one.occurrence}" for one in survivors]
        facts = {"seed": options.seed, "mutants": len(mutants), "sample": every, "killed": dead, "alive": alive}
        print(json.dumps(facts))
        return
    for name in sorted(every):
        print(f"{name:44} {dead[name]:4} killed {every[name] - dead[name]:4} survived")
    print(f"{dead.total()} of {every.total()} killed: {dead.total() / max(1, every.total()):.1%} (seed {options.seed})")


if __name__ == "__main__":
    main()

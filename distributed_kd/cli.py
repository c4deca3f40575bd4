"""The command line: `dkd COMMAND`. Thin: each command loads a recipe and calls the function that does the work.

torch, ray and transformers are imported by the stage that uses them, so that `dkd --help` answers at once.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distributed_kd import stages
from distributed_kd.errors import DkdError, RequestError, WorkError

if TYPE_CHECKING:
    from distributed_kd.recipe import Recipe

app = typer.Typer(
    help="Distributed KD: run the teacher once, cache its logits, train students from the cache.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipePath = Annotated[str, typer.Argument(metavar="RECIPE", help="a YAML recipe")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...", help="recipe keys to override")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object, and no progress")]
Debug = Annotated[bool, typer.Option("--debug", help="show a traceback on errors")]
INTERRUPTED = 130


@app.command()
def demo(overrides: Overrides = None, as_json: Json = False, debug: Debug = False) -> None:
    """The whole job on this machine: `dkd run` of the recipe that comes with the package."""
    from distributed_kd.bundled import bundled

    run(str(bundled("recipes/demo.yaml")), overrides, as_json, debug)


@app.command()
def run(recipe: RecipePath, overrides: Overrides = None, as_json: Json = False, debug: Debug = False) -> None:
    """All stages in turn, skipping what is finished; ends with the report's table."""
    loaded = _load(recipe, overrides, as_json)
    _show_report(stages.run(loaded), loaded, as_json)


@app.command()
def prepare(recipe: RecipePath, overrides: Overrides = None, as_json: Json = False, debug: Debug = False) -> None:
    """Corpus to sequence shards."""
    manifest = stages.prepare(_load(recipe, overrides, as_json))
    splits = {name: summary.model_dump() for name, summary in manifest.splits.items()}
    _show({"fingerprint": manifest.fingerprint, "splits": splits}, as_json)


@app.command()
def cache(recipe: RecipePath, overrides: Overrides = None, as_json: Json = False, debug: Debug = False) -> None:
    """Sequence shards to logit shards, by the teacher."""
    from distributed_kd.launch.stop import end_undisturbed, stopped_by_sigterm

    try:
        with stopped_by_sigterm():  # from here on: what is imported and shown takes its seconds too
            from distributed_kd.cache.inspect import inspect as facts_of
            from distributed_kd.cache.manifest import store_of

            loaded = _load(recipe, overrides, as_json)
            stages.cache(loaded)
            _show(facts_of(store_of(loaded).uri), as_json)
    finally:
        end_undisturbed()


@app.command("import")
def import_(
    recipe: RecipePath,
    source: Annotated[str, typer.Option("--from", metavar="SOURCE", help="a file of JSON lines, or a saved dataset")],
    kind: Annotated[str, typer.Option("--format", help="vllm: answers with prompt_logprobs; axolotl: prepared")],
    overrides: Overrides = None,
    normalised: Annotated[bool, typer.Option("--normalised", help="take lists that have lost their tail")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Lists of logprobs made elsewhere to logit shards, in the place of `dkd cache`."""
    from distributed_kd.cache.inspect import inspect as facts_of
    from distributed_kd.cache.manifest import store_of
    from distributed_kd.teacher.imported import import_lists

    loaded = _load(recipe, overrides, as_json)
    import_lists(loaded, source, kind, normalised)
    _show(facts_of(store_of(loaded).uri), as_json)


@app.command()
def train(recipe: RecipePath, overrides: Overrides = None, as_json: Json = False, debug: Debug = False) -> None:
    """Logit shards to a student, and the baseline on hard labels alone."""
    from distributed_kd.launch.rank import is_first
    from distributed_kd.store.filesystem import Store
    from distributed_kd.student.artifact import ARMS, StudentManifest

    loaded = _load(recipe, overrides, as_json)
    stages.train(loaded)
    if not is_first():
        return
    found = {arm: StudentManifest.read(Store(loaded.workdir).child(arm)) for arm in ARMS}
    keys = {"steps", "sequences_seen", "parameters", "trained_parameters", "fingerprint"}
    _show({arm: manifest.model_dump(include=keys) for arm, manifest in found.items() if manifest}, as_json)


@app.command()
def evaluate(recipe: RecipePath, overrides: Overrides = None, as_json: Json = False, debug: Debug = False) -> None:
    """Teacher, student and baseline on held-out documents, and the report."""
    loaded = _load(recipe, overrides, as_json)
    _show_report(stages.evaluate(loaded), loaded, as_json)


@app.command()
def inspect(
    cache: Annotated[str, typer.Argument(metavar="CACHE")], as_json: Json = False, debug: Debug = False
) -> None:
    """What a cache holds, finished or not."""
    from distributed_kd.cache.inspect import inspect as facts_of

    _begin(as_json)
    _show(facts_of(cache), as_json)


@app.command()
def submit(
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="prepare, cache, train, evaluate or run")],
    recipe: RecipePath,
    overrides: Overrides = None,
    address: Annotated[str, typer.Option(help="the Ray dashboard, http://HOST:8265")] = "http://127.0.0.1:8265",
    follow: Annotated[bool, typer.Option(help="follow the job's log and exit with its result")] = True,
    runtime_env: Annotated[
        str | None, typer.Option(metavar="FILE", help="YAML of Ray's runtime_env: pip, env_vars, image_uri, ...")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="print what would be sent, and send nothing")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """A stage as a Ray job, its log followed."""
    from distributed_kd.launch.ray_job import submit_stage, what_is_sent

    loaded = _load(recipe, overrides, as_json)
    if not dry_run:
        _show(submit_stage(stage, loaded, address, follow, runtime_env), as_json)
        return
    sent = what_is_sent(stage, loaded, address, runtime_env)
    if as_json:
        _show(sent, as_json)
        return
    import yaml

    from distributed_kd.console import results

    print(yaml.safe_dump(sent, sort_keys=False), end="", file=results())


@app.command()
def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    positions: Annotated[int, typer.Option(min=1, help="positions to run, about; half of the corpus at most")] = 8192,
    price_hour: Annotated[float | None, typer.Option(min=0.0, help="price of an hour of one device")] = None,
    price_gb_month: Annotated[float | None, typer.Option(min=0.0, help="price of 10^9 bytes for a month")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Bytes, accelerator hours and money before spending any, from a few batches; for other targets as well."""
    from distributed_kd.teacher.plan import plan as forecast

    facts = forecast(_load(recipe, overrides, as_json), positions, price_hour, price_gb_month)
    if as_json:
        _show(facts, as_json)
        return
    from rich.console import Console

    from distributed_kd.console import results
    from distributed_kd.teacher.plan_table import plan_table

    Console(file=results()).print(plan_table(facts))


@app.command()
def audit(
    cache: Annotated[str, typer.Argument(metavar="CACHE")],
    teacher: Annotated[str | None, typer.Option(help="where the teacher is, if it has moved")] = None,
    positions: Annotated[int, typer.Option(min=1, help="positions to compare, about")] = 4096,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """How far the cached targets are from the teacher's full distribution, and what other choices would cost."""
    from distributed_kd.cache.audit_file import keep_audit
    from distributed_kd.teacher.audit import audit as audit_cache

    _begin(as_json)
    facts = audit_cache(cache, teacher, positions)
    keep_audit(cache, facts)
    if as_json:
        _show(facts, as_json)
        return
    from rich.console import Console

    from distributed_kd.console import results
    from distributed_kd.teacher.audit_table import audit_table

    Console(file=results()).print(audit_table(facts))


@app.command()
def verify(
    cache: Annotated[str, typer.Argument(metavar="CACHE")],
    jobs: Annotated[int | None, typer.Option(min=1, help="processes; all processors if not said")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Whether every byte of a cache is right; exits 1 when not."""
    from distributed_kd.cache.verify import verify as verdict_of
    from distributed_kd.store.index import shard_name

    _begin(as_json)
    verdict = verdict_of(cache, jobs)
    facts = verdict.facts()
    if not as_json:
        from distributed_kd.console import results

        for one in verdict.bad:
            print(f"bad: {one.file}: {one.reason}", file=results())
        for shard in verdict.missing:
            print(f"missing: {shard_name(shard)}", file=results())
        facts |= {"bad": len(verdict.bad), "missing": len(verdict.missing)}
    _show(facts, as_json)
    if not verdict.all_good:
        raise WorkError(
            f"{cache} is not whole: {len(verdict.bad)} bad, {len(verdict.missing)} missing; `dkd repair RECIPE`"
        )


@app.command()
def repair(recipe: RecipePath, overrides: Overrides = None, as_json: Json = False, debug: Debug = False) -> None:
    """Recomputes only the missing and bad shards of a cache, and code tables or an index that are lost."""
    from distributed_kd.teacher.repair import repair as repair_cache

    loaded = _load(recipe, overrides, as_json)
    _show(repair_cache(loaded).facts(), as_json)


@app.command()
def merge(
    caches: Annotated[list[str], typer.Argument(metavar="CACHE CACHE...")],
    out: Annotated[str, typer.Option("--out", metavar="CACHE", help="the folder to write")],
    weights: Annotated[str | None, typer.Option(metavar="W,W,...", help="one a cache; equal if not said")] = None,
    mean: Annotated[str, typer.Option(help="arithmetic, or geometric: of logits")] = "arithmetic",
    jobs: Annotated[int | None, typer.Option(min=1, help="processes; all processors if not said")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """An ensemble's average as one cache: of caches over the same sequences."""
    from distributed_kd.cache.inspect import inspect as facts_of
    from distributed_kd.cache.merge import merge as merge_caches

    _begin(as_json)
    merge_caches(caches, out, _numbers(weights), mean, jobs)
    _show(facts_of(out), as_json)


@app.command()
def export(
    cache: Annotated[str, typer.Argument(metavar="CACHE")],
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="the file to write")],
    kind: Annotated[str, typer.Option("--format", help="parquet")] = "parquet",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """A finished cache as plain Parquet, one row a position."""
    from distributed_kd.cache.export import export as export_cache

    _begin(as_json)
    _show(export_cache(cache, out, kind).facts(), as_json)


@app.command()
def card(
    workdir: str,
    push: Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="the hub's repository to upload to")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """The student's model card, beside its weights; and with --push both on the hub."""
    from distributed_kd.evaluate.card import write_card

    _begin(as_json)
    _show(write_card(workdir, push), as_json)


@app.command()
def status(workdir: str, as_json: Json = False, debug: Debug = False) -> None:
    """Each stage's state."""
    from distributed_kd.status import status as status_of

    _begin(as_json)
    found = status_of(workdir)
    _show(found if as_json else found["stages"], as_json)


@app.command()
def doctor(
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE]")] = None,
    overrides: Overrides = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """What this machine or cluster lacks, each with its fix."""
    from distributed_kd import doctor as doctors

    _begin(as_json)
    findings = list(doctors.examine(_load(recipe, overrides, as_json) if recipe is not None else None))
    found = doctors.facts(findings)
    shown = {one.check: f"{one.state}: {one.found}" + (f"; {one.fix}" if one.fix else "") for one in findings}
    _show(found if as_json else shown, as_json)
    if not found["ok"]:
        raise typer.Exit(1)


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exits 0 done, 1 the work failed, 2 the request was wrong, 130 stopped by Ctrl-C."""
    from typer.exceptions import Abort, TyperException

    given = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        code = app(given, prog_name="dkd", standalone_mode=False)
    except TyperException as error:
        _fail(f"{getattr(error, 'format_message', error.__str__)()}; see `dkd --help`", RequestError.exit_code)
    except (KeyboardInterrupt, Abort):
        code = INTERRUPTED
    except DkdError as error:
        if "--debug" in given:
            raise
        _fail(str(error), error.exit_code)
    except OSError as error:
        if "--debug" in given:
            raise
        where = f" ({error.filename})" if error.filename else ""
        _fail(f"{error.strerror or error}{where}; what was written so far is good", 1)
    except Exception as error:
        if "--debug" in given:
            raise
        text = " ".join(str(error).split())[:300]
        _fail(f"{type(error).__name__}: {text}; run it with --debug for the traceback", 1)
    if code == INTERRUPTED:  # typer itself turns Ctrl-C into this exit code
        _fail("stopped; the same command goes on where it was", INTERRUPTED)
    sys.exit(code or 0)


def _fail(message: str, code: int) -> None:
    print(f"dkd: {message}", file=sys.stderr)
    sys.exit(code)


def _begin(as_json: bool) -> None:
    from distributed_kd.console import claim_stdout, set_quiet

    claim_stdout()
    if as_json:
        set_quiet()


def _load(path: str, overrides: list[str] | None, as_json: bool) -> Recipe:
    from distributed_kd.recipe import load

    _begin(as_json)
    return load(path, overrides or [])


def _numbers(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise RequestError(f"--weights {text} is not numbers with commas between them") from error


def _show(facts: dict[str, Any], as_json: bool) -> None:
    """Results go to standard output: one JSON object, or a line a fact."""
    from distributed_kd.console import results

    if as_json:
        print(json.dumps(facts), file=results(), flush=True)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    for key, value in facts.items():
        table.add_row(key, _readable(value))
    Console(file=results()).print(table)


def _show_report(report: dict[str, Any], recipe: Recipe, as_json: bool) -> None:
    from distributed_kd.console import results

    if as_json:
        print(json.dumps(report), file=results(), flush=True)
        return
    from rich.console import Console

    from distributed_kd.evaluate.table import report_table

    out = Console(file=results())
    out.print(report_table(report))
    out.print(f"report: {recipe.workdir}/report/report.html", soft_wrap=True)


def _readable(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_readable(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(_readable(item) for item in value) or "none"
    return str(value)


if __name__ == "__main__":
    main()

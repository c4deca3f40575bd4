"""The student's model card: `README.md` beside its weights, of what the report and the artifacts say; and the hub.

The recipe is in it as it was, but for where the work was done. Nothing leaves this machine unless a push is asked for.
"""

from __future__ import annotations

import json
from typing import Any

import yaml

from distributed_kd import console
from distributed_kd.errors import RequestError, WorkError
from distributed_kd.evaluate.artifact import FOLDER as REPORT_FOLDER
from distributed_kd.evaluate.artifact import REPORT
from distributed_kd.evaluate.figures import FIGURES
from distributed_kd.store.filesystem import Store
from distributed_kd.store.folder import as_local_folder
from distributed_kd.student.artifact import EXPORT

CARD = "README.md"
_NOT_SHOWN = {"perplexity", "positions_per_second"}  # said by the cross-entropy; of the machine, not of the model
_PIPELINES = {"causal_lm": "text-generation", "chat": "text-generation", "masked_lm": "fill-mask"}
_BASELINE = "The baseline is the same student, trained on hard labels alone.\n"
_PATHS = (".", "/", "~")
_PLACES = {"workdir": None, "capture": {"address"}, "trainer": {"hostfile"}}  # of the recipe: hosts and folders


def write_card(uri: str, push: str | None = None) -> dict[str, Any]:
    """Writes the card into the student's export under the workdir `uri`; with `push`, the export to that repository.

    The repository is made private if it is not there. Returns where both are. Raises `RequestError` where there is no
    report yet, `WorkError` where the hub does not take it.
    """
    workdir = Store(uri)
    name = f"student/{EXPORT}/{CARD}"
    try:
        report = json.loads(workdir.read(f"{REPORT_FOLDER}/{REPORT}"))
    except FileNotFoundError as error:
        raise RequestError(
            f"{workdir.uri} holds no report, which the card tells of; run `dkd evaluate` first"
        ) from error
    is_adapter = workdir.exists(f"student/{EXPORT}/adapter_config.json")
    workdir.put(name, card_of(report, is_adapter).encode())
    facts = {"card": f"{workdir.uri}/{name}"}
    return facts if push is None else facts | {"pushed_to": _push(workdir, push)}


def card_of(report: dict[str, Any], is_adapter: bool = False) -> str:
    """Its text: the hub's metadata, figures, where it comes from and the recipe."""
    from huggingface_hub import ModelCardData

    recipe, models, held_out = report["recipe"], report["models"], report["held_out"]
    teachers = [teacher["model"] for teacher in recipe["teachers"]]
    metadata = ModelCardData(
        base_model=[name for name in teachers if name.count("/") == 1 and not name.startswith(_PATHS)] or None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag=_PIPELINES.get(recipe["corpus"]["task"]),
        tags=["distillation", "distributed-kd"],
    )
    rows = ["| | " + " | ".join(models) + " |", "|---|" + "---|" * len(models)]
    for figure in FIGURES:
        if figure.key not in _NOT_SHOWN:
            cells = (figure.unscaled(own[figure.key]) if figure.key in own else "" for own in models.values())
            rows.append(f"| {figure.alone} | " + " | ".join(cells) + " |")
    prints = "\n".join(f"| {key} | `{value}` |" for key, value in report["fingerprints"].items())
    return f"""---
{metadata.to_yaml()}
---
# {recipe["name"]}

{_taught(report, teachers) if teachers else "A student of hard labels alone, trained with Distributed KD."}
{_BASELINE if "baseline" in models else ""}
On {held_out["positions"]:,} positions of {held_out["documents"]} held-out documents ({held_out["split"]}):

{chr(10).join(rows)}

## Where it comes from

| | fingerprint |
|---|---|
{prints}

## Recipe

```yaml
{yaml.safe_dump(_without_places(recipe), sort_keys=False).strip()}
```
"""


def _taught(report: dict[str, Any], teachers: list[str]) -> str:
    cache, objective, retention = report["cache"], report["recipe"]["objective"], report["retention"]
    names = ", ".join(f"`{_without_folder(name)}`" for name in teachers)
    said = "unknown, since the teacher is right nowhere" if retention is None else f"{retention:.3f}"
    interval = ""
    if edges := report.get("retention_interval"):  # not in a report that an older version wrote
        interval = f", with a 95% interval over documents of {edges[0]:.3f} to {edges[1]:.3f}"
    return f"""A student distilled from {names} with Distributed KD. What it learnt from is in a cache, of
{cache["positions"]:,} positions {cache["mean_kept_mass"]:.3f} of the teacher's mass
({cache["method"]}, K = {cache["k"]}). The student was trained on it
at T = {objective["temperature"]:g} with alpha = {objective["alpha"]:g}.

**Retention {said}**: its accuracy over the teacher's{interval}.
"""


def _without_places(recipe: dict[str, Any]) -> dict[str, Any]:
    kept = {}
    for key, value in recipe.items():
        left_out = _PLACES.get(key, set())
        if left_out is not None:
            kept[key] = {k: v for k, v in value.items() if k not in left_out} if isinstance(value, dict) else value
    found: dict[str, Any] = _without_folder(kept)
    return found


def _without_folder(value: Any) -> Any:
    """A path of this machine as its own name, within lists and mappings too; anything else as it is."""
    if isinstance(value, dict):
        return {key: _without_folder(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_folder(inner) for inner in value]
    is_path = isinstance(value, str) and value.startswith(_PATHS)
    return value.rstrip("/").rpartition("/")[2] if is_path else value


def _push(workdir: Store, repository: str) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        hub = HfApi()
        with console.waiting(f"card: uploading to {repository}"):
            folder = as_local_folder(workdir, f"student/{EXPORT}")
            hub.create_repo(repository, private=True, exist_ok=True)
            done = hub.upload_folder(repo_id=repository, folder_path=folder)
    except HFValidationError as error:
        raise RequestError(f"--push {repository} is not OWNER/NAME on the hub") from error
    except (HfHubHTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WorkError(
            f"the hub did not take {repository} ({reason}); log in with `hf auth login` and push again"
        ) from error
    console.say(f"card: pushed to {repository}")
    return str(done.commit_url)

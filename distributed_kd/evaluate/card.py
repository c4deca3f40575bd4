"""The student's model card: `README.md` beside its weights, of what the report and the artifacts say; and the hub.

The recipe is in it as it was, but for where the work was done. Nothing leaves this machine unless a push is asked for.
"""

from __future__ import annotations

import json
from typing import Any

import yaml

from distributed_kd import console
from distributed_kd.errors import RequestError, WorkError
from distributed_kd.evaluate.evaluate import FOLDER as REPORT_FOLDER
from distributed_kd.evaluate.evaluate import REPORT
from distributed_kd.store.filesystem import Store
from distributed_kd.store.folder import as_local_folder
from distributed_kd.student.artifact import EXPORT

CARD = "README.md"
_FIGURES = (
    ("cross_entropy", "cross-entropy, nats", "{:.3f}"),
    ("kl_from_teacher", "KL from the teacher, nats", "{:.3f}"),
    ("agreement", "agreement with the teacher", "{:.3f}"),
    ("accuracy", "accuracy", "{:.3f}"),
    ("ece", "calibration error", "{:.3f}"),
    ("parameters", "parameters", "{:,}"),
)
_BASELINE = " The baseline is the same student, trained on hard labels alone."
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

    recipe, objective = report["recipe"], report["recipe"]["objective"]
    teacher = recipe["teachers"][0]["model"]
    metadata = ModelCardData(
        base_model=teacher if teacher.count("/") == 1 and not teacher.startswith(_PATHS) else None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="fill-mask" if recipe["corpus"]["task"] == "masked_lm" else "text-generation",
        tags=["distillation", "distributed-kd"],
    )
    models = report["models"]
    rows = ["| | " + " | ".join(models) + " |", "|---|" + "---|" * len(models)]
    for key, title, form in _FIGURES:
        rows.append(f"| {title} | " + " | ".join(form.format(own[key]) for own in models.values()) + " |")
    held_out, cache, retention = report["held_out"], report["cache"], report["retention"]
    said = "unknown, since the teacher is right nowhere" if retention is None else f"{retention:.3f}"
    prints = "\n".join(f"| {key} | `{value}` |" for key, value in report["fingerprints"].items())
    return f"""---
{metadata.to_yaml()}
---
# {recipe["name"]}

A student distilled from `{_without_folder(teacher)}` with Distributed KD: the teacher was run once, and this model
trained on what a cache kept of its distribution (`{cache["method"]}`, K = {cache["k"]}),
at T = {objective["temperature"]:g} with alpha = {objective["alpha"]:g}.

**Retention {said}**: its accuracy over the teacher's, on {held_out["positions"]:,} positions of
{held_out["documents"]} held-out documents ({held_out["split"]}).{_BASELINE if "baseline" in models else ""}

{chr(10).join(rows)}

## Where it comes from

| | fingerprint |
|---|---|
{prints}
| tokenizer | `{cache["tokenizer_sha256"]}` |

The cache holds {cache["positions"]:,} positions and on average {cache["mean_kept_mass"]:.3f} of the teacher's mass.

## Recipe

```yaml
{yaml.safe_dump(_without_places(recipe), sort_keys=False).strip()}
```
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

    folder = as_local_folder(workdir, f"student/{EXPORT}")
    try:
        hub = HfApi()
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

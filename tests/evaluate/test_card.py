"""The model card tells what the report has, of one teacher, of several or of none."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard

from distributed_kd.evaluate.card import card_of, write_card
from distributed_kd.store.filesystem import Store
from tests.evaluate.test_page import report


def report_of(*teachers: str, task: str = "causal_lm") -> dict[str, Any]:
    made = report()
    named = {"teachers": [{"model": name} for name in teachers], "corpus": {"task": task, "source": ["/data/texts/"]}}
    made["recipe"] |= named | {
        "workdir": "/data/runs/mine", "objective": {"temperature": 2.0, "alpha": 0.5},
        "capture": {"address": "10.0.0.1:6379", "codec": "plain-1"},
    }  # fmt: skip
    return made


def test_a_teacher_of_the_hub_is_its_base() -> None:
    card = ModelCard(card_of(report_of("owner/teacher")))
    assert (card.data.base_model, card.data.pipeline_tag) == (["owner/teacher"], "text-generation")
    assert "**Retention 0.627**: its accuracy over the teacher's" in card.text
    assert "with a 95% interval over documents of 0.601 to 0.652." in card.text
    assert "T = 2 with alpha = 0.5" in " ".join(card.text.split())
    assert "| held-out cross-entropy, nats | 3.630 | 4.785 | 5.119 |" in card.text
    assert "| cache | `299f" in card.text
    for place in ("/data", "10.0.0.1", "workdir"):
        assert place not in card.text


@pytest.mark.parametrize("is_adapter", [False, True])
def test_several_teachers_and_folders(is_adapter: bool) -> None:
    card = ModelCard(card_of(report_of("/models/one", "owner/two", task="classification"), is_adapter))
    assert card.data.base_model == ["owner/two"] and card.data.pipeline_tag is None
    assert card.data.library_name == ("peft" if is_adapter else "transformers")
    assert "`one`, `owner/two`" in card.text and "/models" not in card.text


def test_no_teacher_and_figures_that_need_one() -> None:
    made = report_of()
    del made["cache"], made["models"]["teacher"], made["models"]["baseline"]
    del made["models"]["student"]["agreement"], made["models"]["student"]["kl_from_teacher"]
    card = ModelCard(card_of(made | {"retention": None, "retention_interval": None}))
    assert "A student of hard labels alone" in card.text and "Retention" not in card.text
    assert "| accuracy | 0.207 |" in card.text


class Hub:
    """What `huggingface_hub.HfApi` is asked for, in the place of a hub."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def create_repo(self, repository: str, **how: Any) -> None:
        self.asked.append((repository, how))

    def upload_folder(self, repo_id: str, folder_path: str) -> Any:
        time.sleep(0.2)
        self.asked.append((repo_id, {path.name: path.read_text() for path in Path(folder_path).iterdir()}))
        return SimpleNamespace(commit_url="https://hub.example/owner/student/commit/1")


def test_weights_and_card_go_to_the_hub_where_it_is_asked_for_and_nothing_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = Hub()
    monkeypatch.delenv("DKD_QUIET", raising=False)
    monkeypatch.setattr("distributed_kd.console._WAIT_SECONDS", 0.05)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    workdir = Store(str(tmp_path))
    workdir.put("report/report.json", json.dumps(report_of("owner/teacher")).encode())
    for name in ("config.json", "model.safetensors"):
        workdir.put(f"student/export/{name}", b"x")
    facts = write_card(str(tmp_path))
    assert facts == {"card": f"{tmp_path}/student/export/README.md"}
    assert hub.asked == []

    facts = write_card(str(tmp_path), push="owner/student")
    assert facts["pushed_to"] == "https://hub.example/owner/student/commit/1"
    made, (repository, files) = hub.asked
    assert made == ("owner/student", {"private": True, "exist_ok": True})
    assert repository == "owner/student"
    assert files.keys() == {"config.json", "model.safetensors", "README.md"}
    assert "**Retention 0.627**" in files["README.md"]
    assert capsys.readouterr().err.splitlines() == ["card: uploading to owner/student", "card: pushed to owner/student"]

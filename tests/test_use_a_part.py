"""docs/use-a-part.md: each block runs as it stands there, and does what the text beside it says."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from distributed_kd.cache.reader import open as open_cache
from distributed_kd.errors import RequestError
from distributed_kd.evaluate.card import write_card
from distributed_kd.evaluate.evaluate import evaluate
from distributed_kd.recipe import parse
from distributed_kd.student.order import GlobalOrder
from distributed_kd.student.position_weights import entropies
from distributed_kd.student.stream import Stream
from tests.commands import dkd, said
from tests.pages import block, run_block, run_command
from tests.ranks import Ranks

PAGE = "use-a-part.md"


@pytest.fixture
def place(prepared_recipe: dict[str, Any], toy_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a cache and a student where the page has them; the test is in it."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "path/to").mkdir(parents=True)
    (tmp_path / "runs/mine").symlink_to(prepared_recipe["workdir"])
    (tmp_path / "path/to/student").symlink_to(toy_student)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return tmp_path


def test_the_names_are_those_of_the_package_and_cost_nothing() -> None:
    code = (
        "import sys, distributed_kd\n"
        "assert not {'torch', 'transformers', 'pyarrow'} & set(sys.modules)\n"
        "for name in distributed_kd.__all__: getattr(distributed_kd, name)\n"
        "assert not hasattr(distributed_kd, 'nothing_of_the_kind')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_objective_alone() -> None:
    torch.manual_seed(0)
    losses = run_block(PAGE, "The objective alone")["losses"]
    assert losses[-1] < 0.7 * losses[0]
    assert min(losses) > 0.0  # with the tail in it no KL is negative


def test_a_pytorch_loop(place: Path, prepared_recipe: dict[str, Any]) -> None:
    """The batches are those of `dkd train`, in its order."""
    found = run_block(PAGE, "The cache in a PyTorch loop")
    assert found["losses"][-1] < found["losses"][0]
    cache = open_cache("runs/mine/cache")
    order = GlobalOrder(cache.manifest.fingerprint, 0, cache.entries.rows, 8)
    stream = Stream(cache, order, rank=0, world=1, micro_batch=8, temperature=2.0)
    for step, (micro_batch,) in enumerate(stream.steps(0, 6)):
        batch = found["Collator"](2.0)([found["data"][int(number)] for number in found["batches"][step]])
        assert torch.equal(batch["input_ids"], micro_batch.input_ids)
        assert torch.equal(batch["target_log_p"], micro_batch.targets.log_p)
        assert torch.equal(batch["labels"][:, 1:][batch["loss_mask"][:, :-1]], micro_batch.targets.labels)


def test_a_trainer_of_transformers(place: Path) -> None:
    """Its loss does not depend on how a step is cut into micro-batches; what it saves is a student."""
    from transformers import AutoModelForCausalLM, TrainingArguments

    found = run_block(PAGE, "Hugging Face Trainer")
    losses = [line["loss"] for line in found["trainer"].state.log_history if "loss" in line]
    assert len(losses) == 6 and losses[-1] < losses[0]
    saved = AutoModelForCausalLM.from_pretrained("runs/trainer/student")
    student = AutoModelForCausalLM.from_pretrained("path/to/student")
    whole = TrainingArguments(
        "runs/whole", per_device_train_batch_size=8, max_steps=6, learning_rate=1e-2, logging_steps=1,
        remove_unused_columns=False, report_to="none",
    )  # fmt: skip
    found["DistillationTrainer"](
        student, whole, train_dataset=found["data"], data_collator=found["Collator"](2.0)
    ).train()
    evaluated = found["DistillationTrainer"](
        student, whole, eval_dataset=found["data"], data_collator=found["Collator"](2.0)
    ).evaluate()
    assert 0.0 < evaluated["eval_loss"] < losses[0], "and a loss of its own where nobody has counted"
    for name, value in student.named_parameters():
        torch.testing.assert_close(value, saved.get_parameter(name), atol=2e-4, rtol=1e-3, msg=name)


def test_a_dataset_of_datasets(place: Path) -> None:
    found = run_block(PAGE, "A datasets dataset")
    numbers = found["data"]["train"].with_format(None)["sequence"][:4]
    expected = found["Collator"](2.0)([found["rows"][number] for number in numbers])
    assert found["batch"].keys() == expected.keys()
    assert all(torch.equal(found["batch"][key], value) for key, value in expected.items())


def test_an_export_in_duckdb_and_polars(place: Path) -> None:
    """Both say what the cache says of the teacher's entropy."""
    run_command(PAGE, "An export in DuckDB and Polars")
    by_token: dict[int, list[float]] = {}
    for row in open_cache("runs/mine/cache"):
        entropy = entropies(*row.targets.log_probabilities(1.0))
        for token, nats in zip(row.sequence.input_ids[row.sequence.loss_mask].tolist(), entropy.tolist(), strict=True):
            by_token.setdefault(token, []).append(nats)
    means = {token: (len(found), float(np.mean(found))) for token, found in by_token.items() if len(found) >= 5}
    expected = sorted(((token, *mean) for token, mean in means.items()), key=lambda row: (-row[2], row[0]))[:10]
    for package, heading in (("duckdb", "DuckDB"), ("polars", "Polars")):
        pytest.importorskip(package, reason=f"{package} is not installed")
        found = run_block(PAGE, heading)["least_certain"]
        rows = found if isinstance(found, list) else found.rows()
        assert [row[:2] for row in rows] == [row[:2] for row in expected], package
        np.testing.assert_allclose([row[2] for row in rows], [row[2] for row in expected], rtol=1e-5)


def test_requests_for_a_server(place: Path) -> None:
    """The prompts are the sequences that `dkd import` will want the answers of; the command is in test_imported.py."""
    run_block(PAGE, "A cache made elsewhere")
    prompts = [json.loads(line)["prompt"] for line in (place / "requests.jsonl").read_text().splitlines()]
    assert prompts == [row.sequence.input_ids.tolist() for row in open_cache("runs/mine/cache")]
    assert set(shlex.split(block(PAGE, "A cache made elsewhere", "bash"))) >= {"import", "--from", "--format", "vllm"}


@pytest.mark.slow
def test_the_sft_trainer_of_trl(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its losses are those of a loop of ours over the same batches."""
    pytest.importorskip("trl", reason="trl is not installed")
    from transformers import AutoModelForCausalLM, get_linear_schedule_with_warmup

    from distributed_kd import Collator, distillation_loss

    batches: list[dict[str, torch.Tensor]] = []
    collate = Collator.__call__

    def recorded(self: Collator, rows: Any) -> dict[str, torch.Tensor]:
        batches.append(collate(self, rows))
        return batches[-1]

    monkeypatch.setattr(Collator, "__call__", recorded)
    logged = run_block(PAGE, "TRL's SFTTrainer")["trainer"].state.log_history
    losses = [line["loss"] for line in logged if "loss" in line]
    assert len(losses) == 6 and losses[-1] < losses[0]
    # The same by hand: the same batches, AdamW as it stands, clipping at 1 and a rate that falls to nothing.
    student = AutoModelForCausalLM.from_pretrained("path/to/student")
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, 6)
    for batch, loss_there in zip(batches, losses, strict=False):
        loss = distillation_loss(student, batch, alpha=0.5).total / len(batch["target_labels"])
        assert loss.item() == pytest.approx(loss_there, rel=1e-3)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step(), schedule.step(), optimizer.zero_grad()


def _rank(notes: str, heading: str) -> None:
    """What a rank does: the block, then its weights, whole, to a file of rank 0's."""
    student = run_block(PAGE, heading)["student"]
    weights = {
        name.removeprefix("module."): getattr(value, "full_tensor", lambda value=value: value)().detach().numpy()
        for name, value in student.named_parameters()
    }
    if torch.distributed.get_rank() == 0:
        np.savez(Path(notes) / "weights.npz", **weights)
    torch.distributed.destroy_process_group()


def _ddp(notes: str) -> None:
    _rank(notes, "DDP")


def _fsdp(notes: str) -> None:
    _rank(notes, "FSDP2")


@pytest.mark.slow
def test_ddp_and_fsdp2_give_the_weights_of_one_process(place: Path, prepared_recipe: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM

    from distributed_kd import CacheDataset, Collator, distillation_loss

    runs = [Ranks(prepared_recipe, place / name, 2, work=work) for name, work in (("ddp", _ddp), ("fsdp", _fsdp))]
    student = AutoModelForCausalLM.from_pretrained("path/to/student")
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-2)
    data = CacheDataset("runs/mine/cache")
    order = GlobalOrder(data.cache.manifest.fingerprint, 0, data.cache.entries.rows, 8)
    before = {name: value.detach().clone() for name, value in student.named_parameters()}
    for step in range(3):
        batch = Collator(2.0)([data[int(number)] for number in order.batch(step)])
        (distillation_loss(student, batch, alpha=0.5).total / len(batch["target_labels"])).backward()
        optimizer.step()
        optimizer.zero_grad()
    for run in runs:
        run.wait()
        weights = np.load(run.folder / "weights.npz")
        for name, value in student.named_parameters():
            np.testing.assert_allclose(weights[name], value.detach().numpy(), atol=2e-6, err_msg=name)
            assert not np.allclose(weights[name], before[name].numpy(), atol=1e-4)


@pytest.fixture(scope="module")
def trained(prepared_recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose `runs/mine` is a workdir with a student of two steps."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(prepared_recipe["workdir"], folder / "runs/mine")
    workdir = {"workdir": str(folder / "runs/mine")}
    recipe = prepared_recipe | workdir | {"trainer": prepared_recipe["trainer"] | {"steps": 2}}
    Ranks(recipe, folder / "ranks", 1).wait()
    evaluate(parse(recipe))
    return folder


@pytest.mark.slow
def test_the_student_in_a_pipeline(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    text = run_block(PAGE, "The student in transformers.pipeline")["text"]
    assert text.startswith("w1 w2 w3") and len(text.split()) > 3


@pytest.mark.slow
def test_the_student_in_lm_eval(trained: Path, toy_corpus: Path) -> None:
    """Its bits a byte are those of the model's own cross-entropy on the same text."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = " ".join((toy_corpus / "document-000.txt").read_text().split()[:30])
    (trained / "tasks").mkdir()
    (trained / "tasks/held_out.yaml").write_text(block(PAGE, "The student in lm-eval", "yaml"))
    (trained / "texts.jsonl").write_text(json.dumps({"text": text}) + "\n")
    arguments = shlex.split(block(PAGE, "The student in lm-eval", "bash"))[1:]
    done = subprocess.run([sys.executable, "-m", "lm_eval", *arguments], cwd=trained, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(next(trained.glob("scores*.json")).read_text())["results"]["held_out"]["bits_per_byte,none"]
    tokenizer = AutoTokenizer.from_pretrained(trained / "runs/mine/student/export")
    model = AutoModelForCausalLM.from_pretrained(trained / "runs/mine/student/export")
    ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text).input_ids]])
    with torch.no_grad():
        nats = float(torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="sum"))
    assert found == pytest.approx(nats / np.log(2.0) / len(text.encode()), rel=1e-3)


@pytest.mark.slow
def test_the_card_says_where_the_student_comes_from(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import ModelCard

    monkeypatch.chdir(trained)
    run_command(PAGE, "The student on the hub")
    report = json.loads(Path("runs/mine/report/report.json").read_text())
    card = ModelCard.load("runs/mine/student/export/README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    assert f"**Retention {report['retention']:.3f}**" in card.text
    assert report["cache"]["fingerprint"] in card.text and report["fingerprints"]["student"] in card.text
    recipe = yaml.safe_load(card.text.partition("```yaml\n")[2].partition("```")[0])
    assert recipe["objective"] == report["recipe"]["objective"]
    assert "workdir" not in recipe and recipe["teachers"][0]["model"].startswith("teacher")
    assert str(trained.parent) not in card.text  # no folder of this machine
    done = dkd("card", "runs/mine", "--push", "somebody/student", cwd=trained)  # HF_HUB_OFFLINE is set
    assert done.returncode == 1 and "the hub did not take somebody/student" in said(done)
    with pytest.raises(RequestError, match="--push a/b/c is not OWNER/NAME on the hub"):
        write_card("runs/mine", "a/b/c")
    with pytest.raises(
        RequestError, match="nowhere holds no report, which the card tells of; run `dkd evaluate` first"
    ):
        write_card("nowhere")

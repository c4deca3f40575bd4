"""Recipes: what a user asks for, as validated models. Importable without torch.

`load(path, overrides)` reads YAML, applies `key.path=value` overrides and returns a `Recipe`, or raises
`RequestError` with one line that names the key. Relative local paths stay relative to the current directory.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from distributed_kd.errors import RequestError
from distributed_kd.store.failures import without_secrets


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]


class Corpus(Section):
    source: str | list[str] = Field(
        description="file or folder, local, s3://, package:NAME/PATH or builtin:NAME; or a list of them"
    )
    format: Literal["auto", "text", "jsonl", "parquet", "datasets"] = Field(
        "auto",
        description="how to read the source; auto goes by each file's ending (text and jsonl may end in .gz or .zst) "
        "and finds the folders that datasets' save_to_disk wrote",
    )
    text_column: str = Field("text", description="the column that holds a document's text (not in text files)")
    messages_column: str = Field(
        "messages", description="chat: the column that holds a conversation, a list of messages of role and content"
    )
    tokenizer: str | None = Field(None, description="path or hub id; the first teacher's when not given")
    sequence_length: int = Field(1024, ge=2, description="tokens in a sequence at most")
    packing: Literal["concatenate", "isolate", "none"] = Field(
        "concatenate",
        description="concatenate: documents joined by the end-of-text token and cut; isolate: the same, but no "
        "position sees or predicts another document; none: each document is cut alone",
    )
    shard_sequences: Positive = Field(512, description="sequences in a shard at most; a shard is the unit of work")
    validation_fraction: Fraction = Field(0.05, description="share of documents held out for the report")
    development_fraction: Fraction = Field(0.0, description="share of documents held out to choose settings on")
    train_fraction: Fraction | None = Field(
        None, description="share of documents trained on; all that are not held out when not given"
    )
    sequences_per_document: Positive | None = Field(
        None, description="keep at most so many windows of a document, drawn by hash; all when not given"
    )
    block_bytes: Positive = Field(64 << 20, description="source bytes that one prepare task reads, about")
    seed: int = Field(0, description="salt of the hash that draws documents and windows")
    task: Literal["causal_lm", "chat", "masked_lm", "classification", "frames"] = Field(
        "causal_lm",
        description="causal_lm: every token is predicted; chat: documents are conversations, rendered by the "
        "tokenizer's chat template, and what the assistant says is predicted; masked_lm: masked tokens are predicted, "
        "from both sides; classification: the class of each row, a text or an image; frames: the class of each frame "
        "of a row",
    )
    mask_fraction: float = Field(0.15, gt=0.0, lt=1.0, description="masked_lm: share of a sequence's tokens predicted")
    views: Positive = Field(
        1,
        description="masked_lm, classification of images: how often each training row is there, masked or augmented "
        "anew each time; with `view_column`: how many of its views are",
    )
    features_column: str | None = Field(
        None,
        description="frames: the column of a row's features, a list of frames; classification: of an image's numbers "
        "(rows are texts when not given)",
    )
    label_column: str = Field(
        "label",
        description="classification: the column of a row's class number; frames: of a list of them, one a frame",
    )
    document_column: str | None = Field(
        None, description="rows alike in this column are of one document, so of one split; not of text files"
    )
    view_column: str | None = Field(
        None,
        description="classification, frames: the column that numbers the views of one row, from 0; held-out rows are "
        "those of view 0",
    )
    image_shape: tuple[Positive, Positive] | None = Field(None, description="rows and columns of an image; for augment")
    augment: list[Literal["affine", "elastic", "noise", "cutout", "mixup"]] = Field(
        default_factory=list, description="classification: what is done to each view of a training image"
    )
    label_noise: Fraction = Field(
        0.0, description="classification: share of the training rows that get a wrong class, to see what it does"
    )
    labelled_fraction: Fraction = Field(
        1.0,
        description="classification, frames: share of the training documents whose labels are read; in the others the "
        "teacher's targets alone teach",
    )
    without_classes: list[Annotated[int, Field(ge=0)]] = Field(
        default_factory=list, description="classification: classes of which no row is trained on"
    )

    @model_validator(mode="after")
    def _task_has_its_keys(self) -> Corpus:
        if self.task not in ("causal_lm", "chat") and self.packing == "isolate":
            raise ValueError(f"packing isolate is for causal_lm and chat; with {self.task} choose concatenate or none")
        if self.task == "masked_lm" and self.sequence_length < 3:
            raise ValueError("sequence_length must be 3 at least with masked_lm: two ids begin and end a sequence")
        if self.task == "frames" and self.features_column is None:
            raise ValueError("task frames needs `features_column`")
        if self.task not in ("classification", "frames"):
            self._refuse_keys("classification and frames", "features_column", "view_column", "labelled_fraction")
        if self.task != "classification":
            self._refuse_keys("classification", "label_noise", "without_classes")
        if self.task != "classification" or self.features_column is None:
            self._refuse_keys("classification of images", "augment", "image_shape")
            if self.views > 1 and self.task != "masked_lm" and self.view_column is None:
                raise ValueError(
                    "`views` goes with masked_lm and with the classification of images, or with `view_column`"
                )
        if self.augment and self.view_column is not None:
            raise ValueError("give either `augment` or `view_column`: what `views` counts is made here or stored")
        if self.augment and self.image_shape is None:
            raise ValueError("`augment` needs `image_shape`: the rows and columns of an image")
        return self

    def _refuse_keys(self, task: str, *keys: str) -> None:
        for key in keys:
            if getattr(self, key) != type(self).model_fields[key].get_default(call_default_factory=True):
                raise ValueError(f"`{key}` goes with the task of {task}, not with {self.task}")

    @property
    def takes_features(self) -> bool:
        """Whether a position is a vector of numbers; else it is a token."""
        return self.features_column is not None

    @property
    def is_of_rows(self) -> bool:
        """Whether each row of the source is a sequence with its labels; else documents are cut into sequences."""
        return self.task in ("classification", "frames")

    @property
    def window(self) -> int:
        """Ids of documents in a sequence at most: masked ones are framed by two more."""
        return self.sequence_length - 2 if self.task == "masked_lm" else self.sequence_length

    @model_validator(mode="after")
    def _fractions_fit(self) -> Corpus:
        held_out = self.validation_fraction + self.development_fraction
        if held_out + (self.train_fraction or 0.0) > 1.0 + 1e-9:
            raise ValueError("validation_fraction + development_fraction + train_fraction is more than 1")
        return self

    @property
    def sources(self) -> list[str]:
        return [self.source] if isinstance(self.source, str) else list(self.source)


class Teacher(Section):
    model: str = Field("", description="path, hub id, package:NAME or a .gguf file; the student of `recipe` if given")
    recipe: str | None = Field(None, description="a recipe whose student is this teacher, trained before anything else")
    overrides: list[str] = Field(default_factory=list, description="of that recipe, as KEY.PATH=VALUE")
    revision: str | None = Field(None, description="of a hub id: branch, tag or commit")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 where the device computes in it, else float32"
    )
    weight: float = Field(1.0, gt=0.0, description="of several teachers: this one's in the mean, in proportion")
    devices_per_replica: Positive = Field(
        1, description="divide the teacher over so many devices of a host, by transformers' plan for its architecture"
    )

    @model_validator(mode="after")
    def _is_named(self) -> Teacher:
        if not self.model and self.recipe is None:
            raise ValueError("a teacher needs `model`, or the `recipe` that makes it")
        return self


class Targets(Section):
    method: Literal["top_k", "top_p", "sample", "full"] = Field(
        "top_k",
        description="top_k: the k most probable ids; top_p: the most probable ones that hold p together, at most k; "
        "sample: ids drawn by their probability, with their counts; full: every id, for small vocabularies",
    )
    k: Positive = Field(64, description="top_k, top_p: ids kept for a position, at most")
    p: float | None = Field(None, gt=0.0, le=1.0, description="top_p: mass that the kept ids reach at T = 1")
    draws: Positive | None = Field(None, description="sample: ids drawn for a position, with replacement")
    draw_temperature: float | None = Field(
        None, gt=0.0, description="sample: temperature that ids are drawn at; the first of `temperatures` if not given"
    )
    seed: int = Field(0, description="sample: another seed draws other ids")
    temperatures: list[Annotated[float, Field(gt=0.0)]] = Field(
        [1.0], min_length=1, description="temperatures at which the tail mass is kept exactly"
    )
    mean: Literal["arithmetic", "geometric"] = Field(
        "arithmetic", description="of several teachers: of their probabilities, or of their logits"
    )

    @model_validator(mode="after")
    def _method_has_its_keys(self) -> Targets:
        for key, method in (("p", "top_p"), ("draws", "sample"), ("draw_temperature", "sample")):
            if self.method == method and key != "draw_temperature" and getattr(self, key) is None:
                raise ValueError(f"method {method} needs `{key}`")
            if self.method != method and getattr(self, key) is not None:
                raise ValueError(f"`{key}` goes with method {method}, not with {self.method}")
        return self

    @property
    def drawn_at(self) -> float:
        return self.temperatures[0] if self.draw_temperature is None else self.draw_temperature

    @property
    def are_weighted(self) -> bool:
        """Whether ids are drawn at another temperature than one of those listed, and so carry importance weights."""
        return self.method == "sample" and self.temperatures != [self.drawn_at]

    def keeps(self, vocabulary: int) -> int:
        """Ids kept for a position at most, of so many."""
        if self.method == "full":
            return vocabulary
        return min(self.draws, vocabulary) if self.draws is not None else self.k

    def made_from(self) -> dict[str, Any]:
        """What decides which targets are kept: the keys of the method alone."""
        own = {"top_k": {"k"}, "top_p": {"k", "p"}, "sample": {"draws", "seed"}, "full": set()}
        keys = self.model_dump(mode="json", include={"method", "temperatures"} | own[self.method])
        return keys | ({"draw_temperature": self.drawn_at} if self.method == "sample" else {})


class Capture(Section):
    replicas: Positive | Literal["auto"] = Field(
        "auto", description="teacher copies; auto: one a GPU, without any one for each `threads` processors"
    )
    device: Literal["auto", "cpu", "gpu"] = Field(
        "auto",
        description="what a replica asks of the cluster; auto: GPUs if it has any when the capture begins, else "
        "processors; gpu: waits for nodes that have some, as a cluster that scales itself from none must be asked",
    )
    threads: Positive = Field(
        1, description="processors a replica computes with on a CPU; another number may change the last bits"
    )
    batch_tokens: Positive = Field(4096, description="tokens in one teacher forward, at most (one sequence at least)")
    head_chunk: Positive = Field(256, description="positions whose logits exist at once")
    codec: Literal["plain-1", "compact-1", "dense-1"] = Field(
        "plain-1",
        description="plain-1: what any Arrow reader opens; compact-1: a third of the bytes; "
        "dense-1: a byte an id, for targets.method full",
    )
    table_positions: Positive = Field(
        65_536, description="compact-1: positions in the sample that its code tables are made from, about"
    )
    stall_minutes: float = Field(
        10.0, gt=0.0, description="a replica in which no position passes the teacher for so long is replaced"
    )
    address: str | None = Field(None, description="Ray cluster address; a local Ray when not given")
    folder: str = Field("cache", min_length=1, description="of the workdir, that the cache is written to and read from")


class Lora(Section):
    rank: Positive = Field(description="columns of a layer's two adapter matrices")
    alpha: float = Field(gt=0.0, description="a layer's adapter is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="of what an adapter is given, in training")
    target_modules: Annotated[list[str], Field(min_length=1)] | Literal["all-linear"] | None = Field(
        None,
        description="ends of the names of the layers that get an adapter, or all-linear: every linear one but the "
        "head; what peft has for the architecture when not given",
    )
    merge: bool = Field(False, description="export a plain model with the adapters added to its weights")


class Student(Section):
    model: str | None = Field(None, description="path or hub id whose weights (or configuration) to start from")
    config: dict[str, Any] | None = Field(
        None,
        description="random: a configuration in `model`'s place, of model_type feature_classifier: its features, "
        "num_labels, context, hidden_sizes and dropout",
    )
    init: Literal["weights", "teacher_layers", "random"] = Field(
        "weights",
        description="weights: those of `model`; teacher_layers: some of the first teacher's layers; "
        "random: the configuration of `model`, fresh weights",
    )
    layers: Positive | list[Annotated[int, Field(ge=0)]] | None = Field(
        None, description="teacher_layers: which (a list), or how many evenly spread"
    )
    architecture: Literal["distilbert"] | None = Field(
        None,
        description="teacher_layers: the teacher's own when not given; distilbert: a DistilBERT of a BERT's layers",
    )
    classes: Positive | None = Field(
        None, description="weights, classification of texts: of the fresh head of a `model` that has none for it"
    )
    freeze: list[str] = Field(
        default_factory=list, description="embeddings, layers.I, layers.I-J, or the beginning of a parameter's name"
    )
    lora: Lora | None = Field(None, description="train low-rank adapters, through peft, and nothing else")

    @model_validator(mode="after")
    def _start_is_given(self) -> Student:
        if self.init == "teacher_layers":
            if self.layers is None:
                raise ValueError("init: teacher_layers needs `layers`: a count or a list of layer numbers")
            if self.model is not None:
                raise ValueError("give either `model` or init: teacher_layers, not both")
        elif self.config is not None:
            if self.init != "random" or self.model is not None:
                raise ValueError("`config` stands in the place of `model`, with init: random")
            if self.config.get("model_type") != "feature_classifier":
                raise ValueError("`config` is for model_type: feature_classifier; of others give a folder in `model`")
        elif self.model is None:
            raise ValueError(f"init: {self.init} needs `model`: a path or hub id")
        for key in ("layers", "architecture"):
            if self.init != "teacher_layers" and getattr(self, key) is not None:
                raise ValueError(f"`{key}` goes with init: teacher_layers")
        if self.init != "weights" and self.classes is not None:
            raise ValueError("`classes` goes with init: weights")
        return self

    @model_validator(mode="after")
    def _adapters_have_a_base(self) -> Student:
        if self.lora is not None and self.freeze:
            raise ValueError(
                "`freeze` does not go with `lora`, which trains its adapters alone; choose where they are with "
                "lora.target_modules"
            )
        if self.lora is not None and self.init == "random" and not self.lora.merge:
            raise ValueError("init: random leaves no folder for adapters to be opened on; set lora.merge")
        return self


class Objective(Section):
    temperature: float = Field(1.0, gt=0.0, description="T of both sides of the KL; must be in targets.temperatures")
    alpha: Fraction = Field(0.5, description="weight of the soft targets; 1 never reads the hard labels")
    divergence: Literal["forward_kl", "reverse_kl", "jsd", "skewed_kl", "total_variation"] = Field(
        "forward_kl", description="of the student from the teacher, in the KL's place"
    )
    beta: float = Field(0.5, gt=0.0, lt=1.0, description="jsd: weight of the teacher in the mixture")
    skew: float = Field(0.1, gt=0.0, lt=1.0, description="skewed_kl: weight of the teacher in the mixture")
    confidence_exponent: float = Field(
        0.0,
        ge=0.0,
        description="g: a position counts (1 - c)^g, c the probability of the teacher's likeliest id; 0: all alike",
    )
    entropy_share: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="of a sequence's positions, the share that is trained on: those with the teacher's most entropy",
    )
    chunk: Positive | None = Field(
        None, description="positions whose logits exist at once; left out: what suits the device"
    )


class Trainer(Section):
    deepspeed: dict[str, Any] | str = Field(
        default_factory=lambda: {"zero_optimization": {"stage": 1}},
        description="DeepSpeed configuration merged over ours, as a mapping or a JSON file",
    )
    launcher: Literal["auto", "local", "deepspeed", "ray"] = Field(
        "auto",
        description="what starts the ranks; local: this host's; deepspeed: those of `hostfile`, over ssh; ray: "
        "`workers` of the cluster at capture.address; auto: what has its key, else local",
    )
    processes: Positive | Literal["auto"] = Field(
        "auto", description="local: ranks on this host; auto: one a GPU, or one"
    )
    hostfile: str | None = Field(None, description="deepspeed: a file of lines `HOST slots=RANKS`")
    workers: Positive | None = Field(None, description="ray: ranks, one a GPU where the cluster has any")
    max_failures: int = Field(3, ge=0, description="ray: how often lost workers are replaced and training goes on")
    timeout_minutes: float = Field(
        10.0, gt=0.0, description="when a rank is silent for so long, all ranks have ended, and have said which it was"
    )
    global_batch: Positive = Field(32, description="sequences in an optimizer step over all ranks")
    micro_batch: Positive = Field(1, description="sequences in one forward of a rank, of like length each")
    steps: Positive | None = Field(None, description="optimizer steps; or give epochs")
    epochs: Positive | None = Field(None, description="passes over the training sequences; or give steps")
    learning_rate: float = Field(1e-4, gt=0.0, description="of AdamW, the highest of the schedule")
    warmup_fraction: Fraction = Field(0.1, description="share of the steps in which the rate rises linearly")
    schedule: Literal["cosine", "linear", "constant", "wsd"] = Field(
        "cosine",
        description="of the learning rate after the warm-up; wsd: constant, then linear to 0 over `decay_fraction`",
    )
    decay_fraction: Fraction = Field(0.2, description="wsd: share of the steps, the last ones, in which the rate falls")
    weight_decay: float = Field(0.0, ge=0.0, description="of AdamW: a step takes learning_rate x this of each weight")
    gradient_clipping: float = Field(1.0, ge=0.0, description="0: none")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="of weights and activations in a step; the optimizer keeps float32 ones"
    )
    activation_checkpointing: bool = Field(
        False, description="compute activations again in the backward pass: a third more work, far less memory"
    )
    compile: bool = Field(
        False, description="torch.compile each layer: a slow first step, faster ones after it; ZeRO 0 to 2"
    )
    seed: int = Field(0, description="of the order, of dropout and of fresh weights")
    checkpoint_every: int = Field(0, ge=0, description="steps between checkpoints; 0: none")
    keep_checkpoints: Positive = Field(2, description="how many of the last ones are kept")
    evaluate_every: int = Field(
        0, ge=0, description="steps between looks at the loss on development documents; 0: none"
    )
    evaluate_sequences: Positive = Field(64, description="development sequences that are looked at")
    track: list[Literal["wandb", "mlflow"]] = Field(
        default_factory=list,
        description="who is told each step's metrics beside TensorBoard; where and as whom says their environment",
    )
    spike_factor: float | None = Field(
        None, gt=1.0, description="stop where the loss is above so many times the median of the last 50 steps"
    )
    disk_cache_gib: float = Field(
        50.0, ge=0.0, description="of a cache in a bucket: shards kept on this host's disk, for all its ranks; 0: none"
    )
    follow: bool = Field(
        False,
        description="begin to train while the cache is captured, which then captures what is trained on first, first",
    )

    @model_validator(mode="after")
    def _one_length(self) -> Trainer:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either `steps` or `epochs`")
        if self.global_batch % self.micro_batch:
            raise ValueError(f"global_batch {self.global_batch} is not a multiple of micro_batch {self.micro_batch}")
        for key, launcher in (("hostfile", "deepspeed"), ("workers", "ray")):
            if self.started_by == launcher and getattr(self, key) is None:
                raise ValueError(f"launcher {launcher} needs `{key}`")
            if self.started_by != launcher and getattr(self, key) is not None:
                raise ValueError(f"`{key}` goes with launcher {launcher}, not with {self.started_by}")
        if self.schedule == "wsd" and self.warmup_fraction + self.decay_fraction > 1.0 + 1e-9:
            raise ValueError("warmup_fraction + decay_fraction is more than 1")
        return self

    @property
    def started_by(self) -> Literal["local", "deepspeed", "ray"]:
        if self.launcher != "auto":
            return self.launcher
        return "deepspeed" if self.hostfile is not None else "ray" if self.workers is not None else "local"


class Baseline(Section):
    """The same student, initialisation, data, order and steps on hard labels alone; only what differs is said."""

    learning_rate: float | None = Field(None, gt=0.0, description="the trainer's when not given")
    global_batch: Positive | None = Field(
        None,
        description="the trainer's when not given; where `corpus.labelled_fraction` is f, 1/f times as many sequences "
        "hold as many labels as a batch of a teacher that was trained on labels alone",
    )


class Evaluate(Section):
    split: Literal["validation", "development"] = Field(
        "validation", description="whose documents are scored; development, to choose settings by"
    )
    bootstrap: Positive = Field(10_000, description="resamples of the documents behind each interval")
    examples: int = Field(
        3,
        ge=0,
        description="held-out positions that the report shows, with their text: so many where the student is furthest "
        "from the teacher, as many where it is nearest, and as many drawn; 0: none",
    )


class Recipe(Section):
    name: str = Field(min_length=1, description="what the report calls the run")
    workdir: str = Field(description="folder or bucket, s3://..., that every artifact lies under")
    corpus: Corpus
    teachers: list[Teacher] = Field(
        description="one; or several, whose mean is distilled; or none, for a student of hard labels alone"
    )
    targets: Targets = Targets()
    capture: Capture = Capture()
    student: Student
    objective: Objective = Objective()
    trainer: Trainer
    baseline: Baseline | None = Field(
        default_factory=Baseline, description="the same student on hard labels alone, with what is said here; off: none"
    )
    evaluate: Evaluate = Evaluate()

    @field_validator("baseline", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        return None if value is False or value == "off" else value

    @model_validator(mode="after")
    def _baseline_batch_is_whole(self) -> Recipe:
        batch, micro = None if self.baseline is None else self.baseline.global_batch, self.trainer.micro_batch
        if batch is not None and batch % micro:
            raise ValueError(f"baseline.global_batch {batch} is not a multiple of trainer.micro_batch {micro}")
        return self

    @model_validator(mode="after")
    def _temperature_is_cached(self) -> Recipe:
        if self.objective.temperature not in self.targets.temperatures:
            raise ValueError(
                f"objective.temperature {self.objective.temperature:g} is not in targets.temperatures "
                f"{[float(t) for t in self.targets.temperatures]}; add it there or choose one of them"
            )
        return self

    @model_validator(mode="after")
    def _codec_keeps_the_targets(self) -> Recipe:
        codec, method = self.capture.codec, self.targets.method
        if codec == "dense-1" and method != "full":
            raise ValueError(f"capture.codec dense-1 goes with targets.method full, not {method}; choose compact-1")
        if codec == "compact-1" and method == "full":
            raise ValueError("capture.codec compact-1 is for targets of few ids; choose dense-1 with method full")
        if codec == "compact-1" and self.targets.are_weighted:
            raise ValueError(
                f"capture.codec compact-1 keeps counts, and ids drawn at T = {self.targets.drawn_at:g} for "
                f"{[float(t) for t in self.targets.temperatures]} carry weights; choose plain-1, or list one "
                "temperature and draw at it"
            )
        return self

    @model_validator(mode="after")
    def _divergence_is_right_in_the_mean(self) -> Recipe:
        if self.targets.method == "sample" and self.objective.divergence != "forward_kl":
            raise ValueError(
                f"objective.divergence {self.objective.divergence} is biased for targets that are drawn (method "
                "sample): only forward_kl's gradient is right in the mean over draws; choose it, or method top_k"
            )
        return self

    @model_validator(mode="after")
    def _classes_are_of_texts(self) -> Recipe:
        if self.student.classes is not None and (self.corpus.task != "classification" or self.corpus.takes_features):
            raise ValueError("student.classes goes with corpus.task classification of texts")
        return self

    @model_validator(mode="after")
    def _architecture_has_the_task(self) -> Recipe:
        if self.student.architecture is not None and self.corpus.task not in ("masked_lm", "classification"):
            raise ValueError(
                f"student.architecture {self.student.architecture} goes with corpus.task masked_lm and classification, "
                f"not with {self.corpus.task}"
            )
        return self

    @model_validator(mode="after")
    def _weights_are_of_the_distribution(self) -> Recipe:
        objective = self.objective
        if self.targets.method == "sample" and (objective.confidence_exponent, objective.entropy_share) != (0.0, 1.0):
            raise ValueError(
                "objective.confidence_exponent and entropy_share ask for the teacher's probabilities, which drawn "
                "targets (method sample) only estimate; leave them out, or choose method top_k"
            )
        return self

    @model_validator(mode="after")
    def _teachers_fit(self) -> Recipe:
        if len(self.teachers) > 1 and self.trainer.follow:
            raise ValueError("trainer.follow goes with one teacher: the mean of several is made when all are captured")
        if self.teachers:
            return self
        if self.objective.alpha > 0.0:
            raise ValueError(f"without teachers objective.alpha must be 0, not {self.objective.alpha:g}")
        if self.baseline is not None:
            raise ValueError("without teachers the student is what a baseline would be; set baseline: off")
        if self.student.init == "teacher_layers" or self.trainer.follow:
            raise ValueError("student.init: teacher_layers and trainer.follow need a teacher")
        return self

    def of_teacher(self, place: int) -> Recipe:
        """The recipe of the cache of one of several teachers, a folder in that of their mean."""
        capture = self.capture.model_copy(update={"folder": f"{self.capture.folder}/teacher-{place:02d}"})
        return self.model_copy(update={"teachers": [self.teachers[place]], "capture": capture})


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Reads and validates a YAML recipe; `overrides` are `key.path=value` strings, values parsed as YAML."""
    return _with_models(_load(path, overrides))


def _load(path: str | Path, overrides: list[str] | tuple[str, ...]) -> Recipe:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"recipe {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RequestError(f"recipe {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise RequestError(f"recipe {path} is not a mapping of keys to values")
    for override in overrides:
        _apply_override(data, override)
    return _validated(data, where=f"recipe {path}")


def makers(recipe: Recipe) -> list[Recipe]:
    """The recipes of those teachers that one makes, in order; each is a student's without such teachers of its own."""
    return [_maker(teacher.recipe, teacher.overrides) for teacher in recipe.teachers if teacher.recipe is not None]


def _maker(path: str, overrides: list[str]) -> Recipe:
    maker = _load(path, overrides)
    if any(own.recipe is not None for own in maker.teachers):
        raise RequestError(
            f"recipe {path} makes a teacher, so its own teachers cannot have a `recipe`; name their `model`"
        )
    return maker


def parse(data: dict[str, Any], where: str = "recipe") -> Recipe:
    """Validates a mapping. Raises `RequestError`: one line that names `where`, the key and the remedy."""
    return _with_models(_validated(data, where))


def _validated(data: dict[str, Any], where: str) -> Recipe:
    refuse_secrets(data, where)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RequestError(f"{where}: {_one_line(error)}") from error


def _with_models(recipe: Recipe) -> Recipe:
    """With the places of the weights of those teachers that a recipe makes."""
    teachers = [
        teacher
        if teacher.recipe is None or teacher.model
        else teacher.model_copy(update={"model": f"{_maker(teacher.recipe, teacher.overrides).workdir}/student/export"})
        for teacher in recipe.teachers
    ]
    return recipe.model_copy(update={"teachers": teachers})


def refuse_secrets(data: Any, where: str, key: str = "") -> None:
    """A recipe is written beside each artifact and sent to clusters: nothing in it may open a store.

    Raises `RequestError` that names the key.
    """
    pairs = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for name, value in pairs:
        refuse_secrets(value, where, f"{key}.{name}".lstrip("."))
    if isinstance(data, str) and without_secrets(data) != data:
        raise RequestError(
            f"{where}: {key}: a password or a signature in a URL would be written down; leave it out and give it in "
            "the environment"
        )


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise RequestError(f"override {override!r} is not of the form key.path=value")
    *parents, last = key.split(".")
    node: Any = data
    for name in parents:
        node = _child(node, name, key)
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RequestError(f"override {override!r}: the value is not YAML") from error
    if isinstance(node, list):
        node[_list_position(node, last, key)] = parsed
    else:
        node[last] = parsed


def _child(node: Any, name: str, key: str) -> Any:
    if isinstance(node, list):
        return node[_list_position(node, name, key)]
    if not isinstance(node.get(name), dict | list):
        node[name] = {}
    return node[name]


def _list_position(node: list[Any], name: str, key: str) -> int:
    if not name.isdigit() or int(name) >= len(node):
        raise RequestError(f"override {key}: {name!r} is not a place in a list of {len(node)}")
    return int(name)


def _one_line(error: ValidationError) -> str:
    problems = error.errors()
    first = problems[0]
    # A union adds the name of the branch it tried to the location; those are not keys of the recipe.
    location = [str(part) for part in first["loc"] if "[" not in str(part) and str(part) not in ("str", "int", "float")]
    key = ".".join(location) or "recipe"
    if first["type"] == "extra_forbidden":
        known = _known_keys([name for name in location[:-1] if not name.isdigit()])
        nearest = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.0)
        message = f"unknown key {key}; the nearest known one is {'.'.join([*location[:-1], *nearest])}"
    elif first["type"] == "missing":
        message = f"{key} is missing"
    else:
        text = first["msg"].removeprefix("Value error, ")
        given = f" (given: {first['input']!r})" if isinstance(first["input"], str | int | float) else ""
        message = f"{key}: {text[0].lower() + text[1:]}{given}"
    return message + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")


def _known_keys(location: list[str]) -> list[str]:
    sections: dict[str, type[Section]] = {
        "corpus": Corpus, "teachers": Teacher, "targets": Targets, "capture": Capture, "student": Student,
        "student.lora": Lora, "objective": Objective, "trainer": Trainer, "baseline": Baseline, "evaluate": Evaluate,
    }  # fmt: skip
    return list(sections.get(".".join(location), Recipe).model_fields)

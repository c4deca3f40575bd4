"""`trainer`: how it is trained, and by which ranks."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from distributed_kd.recipe.section import Fraction, Positive, Section


class Trainer(Section):
    units: ClassVar[dict[str, str]] = {
        "processes": "ranks", "workers": "ranks", "max_failures": "restarts", "timeout_minutes": "minutes",
        "global_batch": "sequences", "micro_batch": "sequences", "steps": "steps", "epochs": "passes",
        "learning_rate": "a step", "warmup_fraction": "share", "decay_fraction": "share",
        "weight_decay": "a step, of the rate", "gradient_clipping": "norm", "seed": "any number",
        "checkpoint_every": "steps", "keep_checkpoints": "checkpoints", "evaluate_every": "steps",
        "evaluate_sequences": "sequences", "spike_factor": "factor", "disk_cache_gib": "GiB",
    }  # fmt: skip
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
    gradient_clipping: float = Field(1.0, ge=0.0, description="norm of the gradient at most; 0: none")
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

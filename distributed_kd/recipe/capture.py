"""`capture`: how a teacher is run over the corpus, and how its targets are stored."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from distributed_kd.recipe.section import Positive, Section


class Capture(Section):
    units: ClassVar[dict[str, str]] = {
        "replicas": "replicas", "threads": "processors", "batch_tokens": "tokens", "head_chunk": "positions",
        "table_positions": "positions", "stall_minutes": "minutes", "leave_out": "ids of sequences",
    }  # fmt: skip
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
    leave_out: list[int] = Field(
        default_factory=list,
        description="sequences (their ids) that the teacher gives no finite numbers for: they stay rows of the cache, "
        "without a position that carries loss; what is captured already stays as it is",
    )
    address: str | None = Field(None, description="Ray cluster address; a local Ray when not given")
    folder: str = Field("cache", min_length=1, description="of the workdir, that the cache is written to and read from")

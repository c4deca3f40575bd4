"""`corpus`: which documents, and how they become sequences."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from distributed_kd.recipe.section import Fraction, Positive, Section


class Corpus(Section):
    units: ClassVar[dict[str, str]] = {
        "sequence_length": "tokens", "shard_sequences": "sequences", "validation_fraction": "share",
        "development_fraction": "share", "train_fraction": "share", "sequences_per_document": "sequences",
        "block_bytes": "bytes", "seed": "any number", "mask_fraction": "share", "views": "views",
        "image_shape": "pixels", "augment_strength": "factor", "label_noise": "share", "labelled_fraction": "share",
        "without_classes": "class numbers",
    }  # fmt: skip
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
    augment_strength: float = Field(
        1.0,
        ge=0.0,
        allow_inf_nan=False,
        description="factor of how far affine and elastic move a pixel, and of noise; cutout and mixup are as they are",
    )
    keep_original: bool = Field(
        False, description="whether the first of an image's augmented views is the image itself"
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
            self._refuse_keys("classification of images", "augment", "image_shape", "augment_strength", "keep_original")
            if self.views > 1 and self.task != "masked_lm" and self.view_column is None:
                raise ValueError(
                    "`views` goes with masked_lm and with the classification of images, or with `view_column`"
                )
        if self.augment and self.view_column is not None:
            raise ValueError("give either `augment` or `view_column`: what `views` counts is made here or stored")
        if self.augment and self.image_shape is None:
            raise ValueError("`augment` needs `image_shape`: the rows and columns of an image")
        if self.augment and self.keep_original and self.views == 1:
            raise ValueError("`keep_original` needs `views` of 2 at least: the first is the image as it is")
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

"""`objective`: what the student is trained to minimise."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from distributed_kd.recipe.section import Fraction, Positive, Section


class Objective(Section):
    units: ClassVar[dict[str, str]] = {
        "temperature": "temperature", "alpha": "weight", "cosine": "weight", "beta": "weight", "skew": "weight",
        "confidence_exponent": "exponent", "entropy_share": "share", "chunk": "positions",
    }  # fmt: skip
    temperature: float = Field(1.0, gt=0.0, description="T of both sides of the KL; must be in targets.temperatures")
    alpha: Fraction = Field(0.5, description="weight of the soft targets; 1 never reads the hard labels")
    cosine: float = Field(
        0.0,
        ge=0.0,
        description="weight of 1 - cos between the student's last hidden state and that of `targets.hidden`, beside "
        "the other two terms; 0: none",
    )
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

    def refuse_drawn_targets(self) -> None:
        """Raises `ValueError` where targets that are drawn would bias what is minimised."""
        if self.divergence != "forward_kl":
            raise ValueError(
                f"objective.divergence {self.divergence} is biased for targets that are drawn (method sample): only "
                "forward_kl's gradient is right in the mean over draws; choose it, or method top_k"
            )
        if (self.confidence_exponent, self.entropy_share) != (0.0, 1.0):
            raise ValueError(
                "objective.confidence_exponent and entropy_share ask for the teacher's probabilities, which drawn "
                "targets (method sample) only estimate; leave them out, or choose method top_k"
            )

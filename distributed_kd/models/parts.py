"""Body and head apart, once, for every model.

Capture and training apply the head themselves, in chunks of positions, so that [B, S, V] never exists. What a
model does around its head (bias, scaling, soft-capping) is read from it here, and `check` compares the result with
the model's own forward before any work: a head this does not understand is refused, never approximated.

Shapes: B sequences, S positions, D hidden size, V rows of the head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from distributed_kd.errors import RequestError
from distributed_kd.models.config import is_masked_lm, is_text_classifier, takes_features


@dataclass(frozen=True)
class Head:
    """logits = softcap * tanh(scale * (h W^T + bias) / softcap); without a soft-cap, scale * (h W^T + bias)."""

    weight: Tensor  # [V, D]
    bias: Tensor | None = None  # [V]
    scale: float = 1.0
    softcap: float | None = None
    linear: Any = None  # the model's own layer, called for h W^T + bias, where its weight is packed or divided

    @property
    def rows(self) -> int:
        """V"""
        return int(self.weight.shape[0] if self.linear is None else self.linear.out_features)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V] float32, or float64 of such hidden states."""
        logits = self.product(hidden)
        if self.scale != 1.0:
            logits *= self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits

    def product(self, hidden: Tensor) -> Tensor:
        """h W^T + bias, in the dtypes of `logits`: of half precision on a GPU the sums as they were made, not rounded.

        There it has no gradient of its own: the loss forms that itself.
        """
        if self.linear is None and hidden.is_cuda and hidden.dtype in (torch.bfloat16, torch.float16):
            logits = torch.mm(hidden.flatten(0, -2), self.weight.T, out_dtype=torch.float32)
            logits = logits.unflatten(0, hidden.shape[:-1])
            return logits if self.bias is None else logits.add_(self.bias)
        if self.linear is None:
            logits = torch.nn.functional.linear(hidden, self.weight, self.bias)
        else:
            logits = self.linear(hidden)
        return logits if logits.dtype == torch.float64 else logits.float()


class Body(Protocol):
    def __call__(
        self, input_ids: Tensor, position_ids: Tensor, present: Tensor | None = None, features: Tensor | None = None
    ) -> Tensor:
        """input_ids, position_ids and present, all [B, S], to the last hidden states [B, S, D].

        present: False where a row is padded, on the right; None where it nowhere is. features: [B, S, F], for a model
        to which positions are no tokens.
        """


def within(model: Any) -> Any:
    """transformers' own model, adapters in its layers, where DDP or peft has wrapped it; any other as it is."""
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def body_of(model: Any) -> Body:
    """Of a causal model its decoder, to which padding is the future, and position ids that restart isolate documents.

    A masked language model, or a classifier of texts, is its own forward without the last layer, so that whatever it
    does before is in the body; what a classifier has for a text stands at each of the text's positions.
    """
    model = within(model)
    architecture = type(model).__name__
    if takes_features(architecture):

        def classifier(
            input_ids: Tensor, position_ids: Tensor, present: Tensor | None = None, features: Tensor | None = None
        ) -> Tensor:
            assert features is not None
            return model.encode(features)

        return classifier
    if _takes_a_mask(architecture):
        last = _last_layer(model)

        def encoder(
            input_ids: Tensor, position_ids: Tensor, present: Tensor | None = None, features: Tensor | None = None
        ) -> Tensor:
            return _at_each_position(_encoded(model, last, input_ids, present).logits, input_ids)

        return encoder
    decoder = model.get_decoder()

    def body(
        input_ids: Tensor, position_ids: Tensor, present: Tensor | None = None, features: Tensor | None = None
    ) -> Tensor:
        return decoder(input_ids=input_ids, position_ids=position_ids, use_cache=False).last_hidden_state

    return body


class BodyWithState(Protocol):
    def __call__(self, input_ids: Tensor, position_ids: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `Body`: (the last hidden states, which the head is given, the state that is asked for), [B, S, D] each."""


def body_with_state(model: Any, layer: int) -> BodyWithState:
    """A language model's body with a hidden state as transformers numbers them: 0 the embeddings, -1 the last.

    A causal model's last one is what its head is given; between a masked one's and its head there is a transform.
    """
    model = within(model)
    if _takes_a_mask(type(model).__name__):
        last = _last_layer(model)

        def encoder(input_ids: Tensor, position_ids: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
            output = _encoded(model, last, input_ids, present, output_hidden_states=True)
            return output.logits, output.hidden_states[layer]

        return encoder
    decoder = model.get_decoder()

    def body(input_ids: Tensor, position_ids: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
        output = decoder(input_ids=input_ids, position_ids=position_ids, use_cache=False, output_hidden_states=True)
        return output.last_hidden_state, output.hidden_states[layer]

    return body


def _encoded(model: Any, last: Any, input_ids: Tensor, present: Tensor | None, **asked: Any) -> Any:
    """The model's own output, whose logits are what its last layer is given."""
    with _passed_over(last):
        mask = None if present is None else present.long()
        return model(input_ids=input_ids, attention_mask=mask, **asked)


def _takes_a_mask(architecture: str) -> bool:
    """Whether padding must be masked: to others it is the future, and a mask would hide where documents begin."""
    return is_masked_lm(architecture) or is_text_classifier(architecture)


def _at_each_position(hidden: Tensor, input_ids: Tensor) -> Tensor:
    """[B, S, D], of a text's one state [B, D] too."""
    return hidden if hidden.dim() == 3 else hidden[:, None].expand(-1, input_ids.shape[1], -1)


def _last_layer(model: Any) -> Any:
    """The linear layer that gives the logits; None where it is not found."""
    if not is_text_classifier(type(model).__name__):
        return model.get_output_embeddings()
    for name in ("classifier", "classifier.out_proj", "score", "sequence_summary.summary"):
        layer = _attribute(model, name)
        if isinstance(layer, torch.nn.Linear):
            return layer
    return None


def _attribute(model: Any, path: str) -> Any:
    for name in path.split("."):
        model = getattr(model, name, None)
    return model


def hidden_states(
    model: Any, input_ids: Tensor, position_ids: Tensor, attention_mask: Tensor, features: Tensor | None = None
) -> Tensor:
    """The last hidden states [B, S, D] of a forward of `model` itself: whoever has wrapped it (DDP, FSDP2) sees one.

    input_ids, position_ids and attention_mask are all [B, S], padded on the right; features as in `Body`. Raises
    `RequestError` for a model without a head.
    """
    own = within(model)
    architecture = type(own).__name__
    inputs: dict[str, Any] = {"input_ids": input_ids, "position_ids": position_ids, "use_cache": False}
    if takes_features(architecture):
        inputs = {"features": features}
    elif _takes_a_mask(architecture):
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    head_of(own)
    with _passed_over(_last_layer(own)) as taken:
        output = model(**inputs).logits
    if is_text_classifier(architecture):
        return _at_each_position(output, input_ids)
    # What does more after its head, or is cast by a wrapper, gives out other tensors; a wrapper's hooks are on those.
    return taken[0] if output is taken[0] else taken[0] + 0.0 * output


@contextmanager
def _passed_over(layer: Any) -> Iterator[list[Tensor]]:
    """The layer gives what it is given, which is listed. It is still called as a module, so hooks on it run."""
    taken: list[Tensor] = []

    def forward(hidden: Tensor) -> Tensor:
        taken.append(hidden)
        return hidden

    layer.forward = forward
    try:
        yield taken
    finally:
        del layer.forward


def head_of(model: Any) -> Head:
    """Raises `RequestError` for a model that has none, or has an adapter on it."""
    model = within(model)
    linear = _last_layer(model)
    if linear is None:
        raise RequestError(
            f"{type(model).__name__} has no last linear layer that is known, so its head cannot be taken apart"
        )
    if hasattr(linear, "base_layer"):
        raise RequestError(
            f"{type(model).__name__}: its head has an adapter, which the loss, working on the head's own weight, would "
            "pass over; leave it out of lora.target_modules"
        )
    config = model.config.get_text_config()
    scale = 1.0
    if getattr(config, "logits_scaling", None):  # Granite divides
        scale = 1.0 / config.logits_scaling
    elif getattr(config, "logit_scale", None):  # Cohere multiplies
        scale = float(config.logit_scale)
    softcap = getattr(config, "final_logit_softcapping", None)  # Gemma 2 and 3
    # A quantised layer's weight is packed, and a divided one's is this device's part: only the layer multiplies by it.
    is_plain = type(linear.weight) in (Tensor, torch.nn.Parameter) and linear.weight.is_floating_point()
    return Head(linear.weight, getattr(linear, "bias", None), scale, softcap, None if is_plain else linear)


@torch.no_grad()
def check(model: Any, tolerance: float | None = None) -> None:
    """Compares head(body(x)) with the model's own forward on 16 positions. Raises `RequestError` when they differ.

    Numbers that are not finite must be so in both; a model that gives no others is refused.
    """
    model = within(model)
    device = next(model.parameters()).device
    positions = torch.arange(16, device=device).unsqueeze(0)
    if takes_features(type(model).__name__):
        features = (torch.arange(16 * model.config.features, device=device) * 7919 % 64 / 32.0 - 1.0).reshape(1, 16, -1)
        own = model(features).logits.float()
        ours = head_of(model).logits(body_of(model)(positions, positions, features=features))
    else:
        input_ids = positions * 7919 % model.get_input_embeddings().num_embeddings
        more = {} if _takes_a_mask(type(model).__name__) else {"position_ids": positions, "use_cache": False}
        own = model(input_ids=input_ids, **more).logits.float()
        ours = head_of(model).logits(body_of(model)(input_ids, positions))
        ours = ours[:, 0] if own.dim() == 2 else ours
    if own.shape != ours.shape:
        raise RequestError(
            f"{type(model).__name__}: head of {ours.shape[-1]} rows, its own forward has {own.shape[-1]}"
        )
    if tolerance is None:
        tolerance = 1e-4 if model.dtype == torch.float32 else 2e-2
    finite = own.isfinite()
    if not finite.any():
        raise RequestError(
            f"{type(model).__name__} gives no finite number on 16 positions; are its weights whole? try dtype: float32"
        )
    is_same = bool((finite == ours.isfinite()).all())
    error = ((own - ours)[finite].abs().max() / own[finite].abs().max().clamp(min=1.0)).item()
    if not (is_same and error <= tolerance):
        raise RequestError(
            f"{type(model).__name__}: its head does more than this understands (logits differ by {error:.1e} of the "
            f"largest from its own forward; soft-capping, scaling and bias are known); it is refused"
        )

"""Views of an image: heavy augmentation, after which the label that was given to the image may be wrong.

A view is a function of (image, partner, kinds, key) alone, so the teacher's logits are those of this very view. Images
are [H, W] float32; what lies beyond an edge is 0.
"""

from __future__ import annotations

import numpy as np

_TURN = np.pi / 9  # to either side, as are
_STRETCH, _SHEAR = 0.2, 0.2
_SHIFT = 0.125  # of a side
_BEND = 0.1  # of a side: how far elastic moves the nodes of its grid
_NODES = 4
_NOISE = 0.15  # standard deviation, of the image's range
_CUT = (0.25, 0.5)  # of a side
_MIX = (0.5, 1.0)  # share of the image itself


def view_of(image: np.ndarray, partner: np.ndarray, kinds: list[str], key: int, strength: float = 1.0) -> np.ndarray:
    """[H, W] float32. partner: another image [H, W], for mixup. key: below 2^128; another one gives another view.
    strength: factor of the sizes of affine, elastic and noise.
    """
    draw = _Numbers(key)
    view = image.astype(np.float64)
    span = float(image.max() - image.min())
    if "affine" in kinds or "elastic" in kinds:
        moved = np.zeros((2, *image.shape))
        if "affine" in kinds:
            moved += _affine(image.shape, strength, draw)
        if "elastic" in kinds:
            moved += _elastic(image.shape, strength, draw)
        view = _sampled(view, moved)
    if "mixup" in kinds:
        share = _MIX[0] + (_MIX[1] - _MIX[0]) * draw.uniform(1)[0]
        view = share * view + (1.0 - share) * partner
    if "cutout" in kinds:
        rows, columns = (_stretch(side, draw) for side in image.shape)
        view[rows, columns] = 0.0
    if "noise" in kinds:
        view = view + strength * _NOISE * span * draw.normal(image.size).reshape(image.shape)
    return view.astype(np.float32)


class _Numbers:
    """Drawn from raw Philox output, whose stream is fixed for good."""

    def __init__(self, key: int) -> None:
        self._bits = np.random.Philox(key=key)

    def uniform(self, count: int) -> np.ndarray:
        """In [0, 1)."""
        return (self._bits.random_raw(count) >> np.uint64(11)) * 2.0**-53

    def about(self, width: float, count: int) -> np.ndarray:
        """In [-width, width)."""
        return width * (2.0 * self.uniform(count) - 1.0)

    def normal(self, count: int) -> np.ndarray:
        """By Box and Muller."""
        radius, angle = self.uniform(2 * count).reshape(2, count)
        return np.sqrt(-2.0 * np.log1p(-radius)) * np.cos(2.0 * np.pi * angle)


def _affine(shape: tuple[int, ...], strength: float, draw: _Numbers) -> np.ndarray:
    """[2, H, W]: how far from itself each pixel is taken, in pixels: turned, stretched, sheared and shifted."""
    (turn,) = draw.about(strength * _TURN, 1)
    tall, wide = 1.0 + draw.about(strength * _STRETCH, 2)
    (shear,) = draw.about(strength * _SHEAR, 1)
    shift = draw.about(strength * _SHIFT, 2) * shape
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ [[tall, shear], [0.0, wide]]
    centre = (np.array(shape)[:, None, None] - 1) / 2
    places = np.indices(shape) - centre
    return np.tensordot(matrix, places, axes=1) - places + shift[:, None, None]


def _elastic(shape: tuple[int, ...], strength: float, draw: _Numbers) -> np.ndarray:
    """[2, H, W]: a coarse grid of random moves, between its nodes linear (after Simard, Steinkraus and Platt, 2003)."""
    nodes = np.stack([draw.about(strength * _BEND * side, _NODES * _NODES).reshape(_NODES, _NODES) for side in shape])
    rows, columns = (np.linspace(0, _NODES - 1, side) for side in shape)
    grid = np.stack(np.meshgrid(rows, columns, indexing="ij"))
    return np.stack([_bilinear(own, grid) for own in nodes])


def _stretch(side: int, draw: _Numbers) -> slice:
    share, place = draw.uniform(2)
    length = max(1, round(side * (_CUT[0] + (_CUT[1] - _CUT[0]) * share)))
    begin = int(place * (side - length + 1))
    return slice(begin, begin + length)


def _sampled(image: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """The image [H, W] at each pixel's place plus `moved` [2, H, W]."""
    framed = np.pad(image, 1)  # of 0, into which what leaves the image fades
    places = np.indices(image.shape) + 1 + moved
    return _bilinear(framed, np.clip(places, 0, np.array(framed.shape)[:, None, None] - 1))


def _bilinear(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """values [h, w] between its nodes, at places [2, H, W] within it."""
    row, column = places
    top = np.minimum(row.astype(np.int64), values.shape[0] - 2)
    left = np.minimum(column.astype(np.int64), values.shape[1] - 2)
    down, right = row - top, column - left
    upper = values[top, left] * (1 - right) + values[top, left + 1] * right
    lower = values[top + 1, left] * (1 - right) + values[top + 1, left + 1] * right
    return upper * (1 - down) + lower * down

"""Views of an image: functions of their key alone, of the image's size, and each kind does what it is called."""

from __future__ import annotations

import numpy as np
import pytest

from distributed_kd.corpus.augment import view_of

KINDS = ["affine", "elastic", "noise", "cutout", "mixup"]
IMAGE = np.zeros((8, 8), np.float32)
IMAGE[2:6, 3:5] = 1.0
OTHER = np.full((8, 8), 0.5, np.float32)


@pytest.mark.parametrize("kinds", [[], *[[kind] for kind in KINDS], KINDS])
def test_a_view_is_a_function_of_its_key(kinds: list[str]) -> None:
    views = [view_of(IMAGE, OTHER, kinds, key) for key in (1, 1, 2)]
    assert views[0].shape == (8, 8) and views[0].dtype == np.float32
    np.testing.assert_array_equal(views[0], views[1])
    assert np.array_equal(views[0], views[2]) == (not kinds)


def test_a_view_of_no_kind_is_the_image() -> None:
    np.testing.assert_array_equal(view_of(IMAGE, OTHER, [], 5), IMAGE)


def test_what_views_are_made_of_does_not_change() -> None:
    """Caches are of them: at the strength that was there before there was a key for it."""
    column = [0.06153301, 0.38578922, 0.64804506, 0.67513424, 0.01367844, -0.0568062, -0.01482222, -0.14469482]
    np.testing.assert_allclose(view_of(IMAGE, OTHER, KINDS, 7)[:, 3], column, atol=1e-6)


@pytest.mark.parametrize("kind", ["affine", "elastic", "noise"])
def test_strength_is_how_far_a_view_is_from_its_image(kind: str) -> None:
    far = []
    for strength in (0.0, 0.5, 1.0, 2.0):
        views = [view_of(IMAGE, OTHER, [kind], key, strength) for key in range(100)]
        far.append(float(np.mean([np.abs(view - IMAGE).mean() for view in views])))
    assert far[0] == 0.0  # the image itself, bit for bit
    assert 0.0 < far[1] < far[2] < far[3]
    assert 0.3 < far[1] / far[2] < 0.7


def test_strength_does_not_change_what_is_cut_or_mixed() -> None:
    for key in range(20):
        one, other = (view_of(IMAGE, OTHER, ["mixup", "cutout"], key, strength) for strength in (0.0, 3.0))
        np.testing.assert_array_equal(one, other)
        assert not np.array_equal(one, IMAGE)


def test_moved_images_keep_their_mass_about_where_it_was() -> None:
    """0.2 to either side in each direction stretches the mass by a third at most, and turns and shifts move it."""
    for kind in ("affine", "elastic"):
        moved = np.stack([view_of(IMAGE, OTHER, [kind], key) for key in range(300)])
        assert moved.min() >= 0.0 and moved.max() <= 1.0  # between pixels: nothing new
        assert abs(moved.mean() / IMAGE.mean() - 1.0) < 0.1
        assert np.abs(moved.mean(axis=0) - IMAGE).max() < 0.5
        assert np.std(moved.sum(axis=(1, 2))) > 0.1


def test_mixup_is_a_mean_of_which_the_image_is_half_at_least() -> None:
    shares = [(view_of(IMAGE, OTHER, ["mixup"], key)[0, 0] - 0.0) / 0.5 for key in range(200)]
    assert 0.0 <= min(shares) < 0.05 and 0.45 < max(shares) <= 0.5


def test_cutout_blanks_one_rectangle() -> None:
    for key in range(50):
        blank = np.argwhere(view_of(OTHER, IMAGE, ["cutout"], key) == 0.0)
        rows, columns = (np.unique(blank[:, axis]) for axis in (0, 1))
        assert len(blank) == len(rows) * len(columns) and 2 <= len(rows) <= 4 and 2 <= len(columns) <= 4
        assert (np.diff(rows) == 1).all() and (np.diff(columns) == 1).all()


def test_noise_has_its_share_of_the_images_range() -> None:
    noise = np.concatenate([(view_of(2 * IMAGE, OTHER, ["noise"], key) - 2 * IMAGE).ravel() for key in range(100)])
    assert abs(noise.std() - 0.3) < 0.01 and abs(noise.mean()) < 0.02

"""Windows: they cover an image, their weights are right, and blended scores equal those of the whole image."""

import numpy as np
import pytest

from utils.prediction import windows

RANDOM = np.random.RandomState(0)
CASES = [(int(size), int(RANDOM.randint(1, size + 1)), float(overlap))
         for size, overlap in zip(RANDOM.randint(1, 90, 60), RANDOM.uniform(0, 0.9, 60))]
CASES += [(1, 1, 0.0), (64, 32, 0.0), (65, 32, 0.0), (65, 64, 0.9), (90, 10, 0.9), (513, 513, 0.33), (3, 2, 0.5)]


@pytest.mark.parametrize('size, length, overlap', CASES)
def test_a_side_is_covered_and_its_weights_add_up_to_one(size, length, overlap):
    places, weights = windows.side(size, length, overlap)
    assert places[0] == 0 and places[-1] == size - length and len(places) == len(weights)
    for one, following in zip(places, places[1:]):
        assert 0 < following - one <= max(1, int(length * (1 - overlap)))  # no gap, and enough overlap
    total = np.zeros(size)
    for place, weight in zip(places, weights):
        assert weight.shape == (length,) and weight.dtype == np.float32 and (weight > 0).all()
        total[place:place + length] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_as_few_windows_as_the_overlap_asks_for():
    assert windows.starts(100, 50, 0) == [0, 50]
    assert windows.starts(101, 50, 0) == [0, 25, 51]
    assert windows.starts(100, 50, 0.5) == [0, 25, 50]
    assert windows.starts(50, 50, 0.9) == [0]
    assert windows.number((100, 50), (50, 50), 0.5) == 3


def test_weights_are_smooth_and_depend_on_the_place_in_the_window_alone():
    places, weights = windows.side(1000, 100, 0.5)
    inner = weights[3:-3]
    assert len(inner) > 5 and all(np.allclose(one, inner[0], atol=0.05) for one in inner)
    bell = np.sin(np.pi * (np.arange(100) + 0.5) / 100) ** 2  # the formula of windows.py
    last, before = bell[:50], bell[50:]
    np.testing.assert_allclose(windows.side(150, 100, 0.5)[1][1][:50], last / (last + before), rtol=1e-5)
    assert max(np.abs(np.diff(weight)).max() for weight in inner) < 0.05


def blend(score, image, window, overlap):
    return np.concatenate([band.copy() for band in windows.blended(score, image, window, overlap)])


@pytest.mark.parametrize('case', range(30))
def test_of_a_network_of_single_pixels_windows_are_the_whole(case):
    random = np.random.RandomState(case)
    image = random.uniform(-1, 1, tuple(random.randint(1, 60, 2)) + (3,)).astype(np.float32)
    window = tuple(random.randint(1, side + 1) for side in image.shape[:2])
    kernel, seen = random.uniform(-1, 1, [3, 5]).astype(np.float32), []

    def score(pixels):
        seen.append(pixels.shape[:2])
        return np.tanh(pixels.dot(kernel))

    overlap = random.uniform(0, 0.9)
    np.testing.assert_allclose(blend(score, image, window, overlap), score(image), atol=1e-6)
    assert seen[:-1] == [window] * windows.number(image.shape[:2], window, overlap)


@pytest.mark.parametrize('overlap', [0, 0.4, 0.9])
def test_blended_scores_are_the_weighted_mean_of_the_windows(overlap):
    """The scores differ from window to window; a float64 sum over the whole image is the reference."""
    random = np.random.RandomState(1)
    size, window = (23, 31), (9, 12)
    image = np.zeros(size + (3,), np.float32)
    found = [random.uniform(-1, 1, window + (2,)).astype(np.float32) for _ in range(
        windows.number(size, window, overlap))]
    bell = [np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in window]
    weight = np.outer(*bell)[:, :, None]
    total, weights, order = np.zeros(size + (2,)), np.zeros(size + (1,)), iter(found)
    for y in windows.starts(size[0], window[0], overlap):
        for x in windows.starts(size[1], window[1], overlap):
            place = slice(y, y + window[0]), slice(x, x + window[1])
            total[place] += next(order) * weight
            weights[place] += weight
    order = iter(found)
    np.testing.assert_allclose(blend(lambda pixels: next(order), image, window, overlap), total / weights, atol=1e-6)


def test_a_band_is_as_high_as_a_window_at_most():
    image = np.zeros([200, 20, 3], np.float32)
    bands = [band.shape for band in windows.blended(lambda pixels: pixels, image, (20, 20), 0.3)]
    assert max(height for height, _, _ in bands) <= 20 and sum(height for height, _, _ in bands) == 200

"""utils/label_utils.py: coloured masks, pictures of network inputs and overlays."""

import numpy as np
import pytest
from PIL import Image

from utils.data.palette import Palette, load_palette, voc_colours
from utils.label_utils import decode_labels, inv_preprocess, overlay

VOID = (224, 224, 192)


@pytest.mark.parametrize('dtype', [np.uint8, np.int32, np.int64])
def test_decode_labels(dtype):
    mask = np.array([[[0, 1], [20, 21]], [[255, 5], [3, 2]]]).astype(dtype)
    expected = voc_colours()[np.where(mask > 20, 0, mask)]
    expected[mask > 20] = VOID
    for form in (mask, mask[..., None]):
        out = decode_labels(form, 2)
        assert out.dtype == np.uint8
        np.testing.assert_array_equal(out, expected)
        np.testing.assert_array_equal(decode_labels(form), expected[:1])
    assert decode_labels(mask, 5).shape == (2, 2, 2, 3)  # fewer than asked for


def test_decode_labels_below_zero_is_void():
    np.testing.assert_array_equal(decode_labels(np.array([[[-1, 0]]]))[0, 0], [VOID, (0, 0, 0)])


def test_decode_labels_with_palette():
    palette = load_palette('cityscapes', 19)
    out = decode_labels(np.array([[[0, 18, 19, 255]]]), 1, 19, palette)
    np.testing.assert_array_equal(out[0, 0], [(128, 64, 128), (119, 11, 32), VOID, VOID])


def test_decode_labels_with_256_classes():
    mask = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    np.testing.assert_array_equal(decode_labels(mask, 1, 256)[0], voc_colours().reshape(16, 16, 3))


@pytest.mark.parametrize('order', ['bgr', 'rgb'])
def test_inv_preprocess_undoes_the_input(order):
    pictures = np.random.RandomState(0).randint(0, 256, [3, 4, 5, 3]).astype(np.uint8)
    mean = np.array([104.00698793, 116.66876762, 122.67891434])
    inputs = (pictures[..., ::-1] if order == 'bgr' else pictures).astype(np.float32) - mean.astype(np.float32)
    out = inv_preprocess(inputs, 2, mean, order)
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out, pictures[:2])
    assert len(inv_preprocess(inputs, 9, mean, order)) == 3


def test_inv_preprocess_rounds_and_clips():
    inputs = np.array([-200, 300, 0.6]).reshape(1, 1, 1, 3)
    np.testing.assert_array_equal(inv_preprocess(inputs, 1, (0, 0, 0), 'rgb')[0, 0, 0], [0, 255, 1])
    np.testing.assert_array_equal(inv_preprocess(inputs, 1, (0, 0, 0))[0, 0, 0], [1, 255, 0])


def test_inv_preprocess_names_the_orders():
    with pytest.raises(ValueError, match='bgr rgb'):
        inv_preprocess(np.zeros([1, 1, 1, 3]), 1, (0, 0, 0), 'grb')


@pytest.mark.parametrize('height', [40, 70, 900])
def test_overlay(height):
    image = np.random.RandomState(0).randint(0, 256, [height, 60, 3]).astype(np.uint8)
    mask = np.zeros([height, 60], np.uint8)
    mask[:, 20:], mask[:, 40:] = 15, 255
    palette = load_palette('voc', 21)
    out = overlay(image, mask, palette, 21)
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out[:height, :20], image[:, :20] // 2)
    halves = (image[:, 20:40].astype(int) + palette.colours[15]) // 2
    np.testing.assert_array_equal(out[:height, 20:40], halves)
    np.testing.assert_array_equal(out[:height, 40:60], image[:, 40:])
    legend = out[:, 60:].reshape(-1, 3)
    for index in (0, 15):
        assert (legend == palette.colours[index]).all(axis=1).any()
    assert not (legend == palette.colours[1]).all(axis=1).any()  # a class that is absent


def test_overlay_names_the_classes():
    image, mask = np.zeros([40, 40, 3], np.uint8), np.ones([40, 40], np.uint8)
    colours = voc_colours()

    def legend(name):
        return overlay(image, mask, Palette(colours, ['', name]), 2)[:, 40:]

    assert not np.array_equal(legend('aaa'), legend('bbb'))
    assert legend('a much longer name').shape[1] > legend('aaa').shape[1]
    assert legend('\u72d7').shape[2] == 3  # not in the font
    numbered = overlay(image, mask, Palette(colours, None), 2)
    np.testing.assert_array_equal(numbered, overlay(image, mask, None, 2))
    np.testing.assert_array_equal(numbered[:, 40:], legend('class 1'))


def test_overlay_grows_for_many_classes():
    mask = np.arange(21, dtype=np.uint8).reshape(3, 7)
    out = overlay(np.zeros([3, 7, 3], np.uint8), mask, load_palette('voc', 21), 21)
    legend = out[:, 7:].reshape(-1, 3)
    for colour in voc_colours(21):
        assert (legend == colour).all(axis=1).any()
    assert (out[3:, :7] == 255).all()


def test_overlay_without_any_class():
    image = np.full([20, 30, 3], 7, np.uint8)
    out = overlay(image, np.full([20, 30], 255, np.uint8), load_palette('voc', 21), 21)
    np.testing.assert_array_equal(out[:, :30], image)


def test_overlay_can_be_saved(tmp_path):
    out = overlay(np.zeros([20, 30, 3], np.uint8), np.ones([20, 30], np.int64), load_palette('', 21), 21)
    Image.fromarray(out).save(str(tmp_path / 'a.png'))
    np.testing.assert_array_equal(np.asarray(Image.open(str(tmp_path / 'a.png'))), out)

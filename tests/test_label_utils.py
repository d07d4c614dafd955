"""utils/label_utils.py: coloured masks, pictures of network inputs, and overlays."""

import numpy as np
import pytest
from PIL import Image

from utils.data.palette import Palette, load_palette, voc_colours
from utils.label_utils import decode_labels, inv_preprocess, overlay, tint

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
    assert decode_labels(mask, 5).shape == (2, 2, 2, 3)  # fewer images than requested


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


@pytest.mark.parametrize('height, line, contrast', [(40, 1, 1), (70, 1, 1), (900, 3, 2)])
def test_overlay(height, line, contrast):
    width = max(60, height)
    image = np.random.RandomState(0).randint(60, 196, [height, width, 3]).astype(np.uint8)
    mask = np.zeros([height, width], np.uint8)
    third = width // 3
    mask[:, third:], mask[:, 2 * third:] = 5, 255
    palette = load_palette('voc', 21)
    out = overlay(image, mask, palette, 21)
    assert out.dtype == np.uint8
    picture, legend = out[:height, :width], out[:, width:].reshape(-1, 3)
    np.testing.assert_array_equal(picture[:, 2 * third:], image[:, 2 * third:])  # the value is not a class
    lined = [range(third - line, third), range(third, third + line), range(2 * third - line, 2 * third)]
    for columns, index in zip(lined, (0, 5, 5)):
        assert (picture[:, list(columns)] == palette.colours[index]).all()
    set_off = [range(third - line - contrast, third - line), range(third + line, third + line + contrast),
               range(2 * third - line - contrast, 2 * third - line)]
    for columns in set_off:  # white, because both classes are dark
        np.testing.assert_allclose(picture[:, list(columns)], 170 + picture_of(image, mask)[:, list(columns)] / 3,
                                   atol=1)
    inside = np.ones(width, bool)
    inside[[column for columns in lined + set_off for column in columns]] = False
    np.testing.assert_allclose(picture[:, inside], picture_of(image, mask)[:, inside], atol=1)
    for index in (0, 5):
        assert (legend == palette.colours[index]).all(axis=1).any()
    assert not (legend == palette.colours[1]).all(axis=1).any()  # an absent class is not listed


def picture_of(image, mask):
    """Returns the image's luma with 0.4 of its own chroma and 0.6 of VOC's colour, float [h, w, 3]."""
    luma = np.array([0.299, 0.587, 0.114])
    colours = voc_colours()[np.where(mask == 255, 0, mask)].astype(float)
    image_luma, colour_luma = (image @ luma)[..., None], (colours @ luma)[..., None]
    mixed = image_luma + 0.4 * (image - image_luma) + 0.6 * (colours - colour_luma)
    return np.where((mask == 255)[..., None], image, mixed)


@pytest.mark.parametrize('grey', [0, 30, 128, 250, 255])
def test_the_tint_keeps_the_luma_of_every_pixel(grey):
    colours = np.tile(voc_colours()[:21], [3, 1])[None]  # [1, 63, 3]
    photo = np.random.RandomState(1).randint(0, 256, colours.shape).astype(np.uint8)
    photo[:, :21], photo[:, 21:42] = grey, (grey, 0, 255)
    tinted = tint(photo, colours)
    assert tinted.min() >= 0 and tinted.max() <= 255
    luma = np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(tinted @ luma, photo @ luma, atol=0.01)
    if grey in (30, 128):  # near black and white, there is less room for a hue
        coloured = np.ptp(voc_colours()[:21].astype(int), axis=1) > 0
        assert (np.ptp(tinted[0, :21], axis=1) > 10).tolist() == coloured.tolist()


@pytest.mark.parametrize('index', range(12))
def test_an_overlay_keeps_the_mean_brightness(index):
    ramp = np.repeat(np.linspace(0, 255, 300)[None], 200, axis=0)  # [200, 300]
    image = np.stack([ramp, ramp[:, ::-1], ramp], axis=2).astype(np.uint8)
    mask = np.full([200, 300], index)
    mask[60:140, 100:200] = 7  # a grey class, which has no hue to distinguish it from black
    out = overlay(image, mask, load_palette('voc', 21), 21)[:200, :300]
    luma = np.array([0.299, 0.587, 0.114])
    assert abs((out @ luma).mean() - (image @ luma).mean()) < 4
    if index != 7:
        assert (out[60, 100:200] == 128).all() and (out[61, 101:199] > 128).all()  # a grey line with white beside it


def test_a_bright_class_is_set_off_by_black():
    image = np.full([50, 60, 3], 90, np.uint8)
    mask = np.zeros([50, 60], np.uint8)
    mask[:, 30:] = 1
    colours = np.array([[255, 255, 0], [40, 0, 60]], np.uint8)
    out = overlay(image, mask, Palette(np.concatenate([colours, voc_colours()[2:]]), None), 2)
    assert (out[:50, 29] == colours[0]).all() and (out[:50, 30] == colours[1]).all()
    assert out[:50, 28].mean() < 40 and out[:50, 31].mean() > 190


def test_overlay_names_the_classes():
    image, mask = np.zeros([40, 40, 3], np.uint8), np.ones([40, 40], np.uint8)
    colours = voc_colours()

    def legend(name):
        return overlay(image, mask, Palette(colours, ['', name]), 2)[:, 40:]

    assert not np.array_equal(legend('aaa'), legend('bbb'))
    assert legend('a much longer name').shape[1] > legend('aaa').shape[1]
    assert legend('\u72d7').shape[2] == 3  # the font lacks this character
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

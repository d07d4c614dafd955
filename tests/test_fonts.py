"""Names with characters that the fonts of legends and figures lack, and a closed stdout."""

import glob
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from PIL import ImageFont

from utils import fonts
from utils.data.palette import Palette, voc_colours
from utils.label_utils import legend
from utils.prediction import metrics

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LACKED = ['\u72d7', '\u05db\u05dc\u05d1', 'x\u0336', '\U0001f9ff\U000e0001', ' ', '\u0643\u0644\u0628']


@pytest.mark.parametrize('name', LACKED)
def test_names_that_a_font_lacks_are_numbered(name):
    for has in (fonts.characters_of_matplotlib(), fonts.characters_of_pillow(ImageFont.load_default())):
        assert fonts.labels({3: name, 5: 'cat'}, has) == ['class 3', 'cat']


def test_names_that_a_font_has_are_shown():
    has = fonts.characters_of_matplotlib()
    assert fonts.labels(dict(enumerate(['\u0434\u043e\u043c', 'e\u0301', '_a', '$x^2$', 'a\tb'])), has) == [
        '\u0434\u043e\u043c', '\xe9', '_a', '$x^2$', 'a\\tb']
    assert len(fonts.labels({0: 'long ' * 99}, has)[0]) == fonts.LONGEST


def test_the_legend_has_no_boxes():
    def drawn(name):
        return legend([1], Palette(voc_colours(), ['', name]))

    for name in LACKED:
        np.testing.assert_array_equal(drawn(name), drawn('class 1'))


def test_the_legend_draws_what_matplotlibs_font_has():
    text = '\u0434\u043e\u043c \xd6l Stra\xdfe'
    font = fonts.legend_font({0: 'plain', 1: text})
    assert fonts.labels({0: 'plain', 1: text}, fonts.characters_of_pillow(font)) == ['plain', text]


def test_the_confusion_matrix_draws_any_name_without_a_warning(tmp_path):
    names = LACKED + ['_a', '$x^2$', '$\\frac', 'long ' * 99]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        metrics.plot_confusion_matrix(np.eye(len(names)), str(tmp_path / 'a.png'), names)
    assert (tmp_path / 'a.png').stat().st_size


def test_curves_of_any_name_have_no_warning(tmp_path):
    import plot_training_curve
    run = {name: np.arange(3.0) for name in plot_training_curve.SERIES}
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        figure = plot_training_curve.draw([run, run], ['\u72d7', '$\\frac'], 1)
        figure.savefig(str(tmp_path / 'a.png'))
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert texts[0].startswith(' run 1') and '\\frac' in texts[1]


# Printing fails in main, only when the text is flushed, or, with --help, after absl has ended the program.
@pytest.mark.parametrize('text', ["'a' * 10 ** 6", "'a'", "'a') or sys.exit(0"])
@pytest.mark.parametrize('unbuffered', ['', '1'])
def test_a_closed_stdout_ends_a_program_quietly(text, unbuffered):
    code = 'import sys; from utils.system import command_line; sys.exit(command_line.run(lambda: print(%s), ["x"]))'
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, '-c', code % text], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE,
                          env=dict(os.environ, PYTHONUNBUFFERED=unbuffered))
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b'')


def test_classes_of_one_name_have_curves_of_their_own(settings, tmp_path):
    from utils.data.palette import Classes
    from utils.training import records
    classes = Classes(3, 255, Palette(voc_colours(), ['object', 'sky', 'object']))
    conf = settings(modeldir=str(tmp_path), logfile=str(tmp_path / 'l'), logdir=str(tmp_path))
    record, tags = records.Records(conf, 'x', classes), []
    record.read(0)
    record.open(0, tf.Graph(), ['loss/total'])
    record.add(0, {'loss/total': 1, 'learning_rate': 1, 'images_per_second': 1})
    record.add_scores(0, {'mean_iou': 0.5, 'pixel_accuracy': 0.5, 'iou': np.array([0.1, 0.2, 0.3])})
    record.close()
    for event in tf.train.summary_iterator(glob.glob(str(tmp_path / 'events*'))[0]):
        tags += [value.tag for value in event.summary.value if '/iou/' in value.tag]
    assert tags == ['validation/iou/' + name for name in ('object (class 0)', 'object (class 2)', 'sky')]

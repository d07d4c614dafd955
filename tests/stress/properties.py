"""Property-based tests with hypothesis: windows, scores, pixels, labels, towers and resumed trainings."""

import os
import tempfile
import types

import hypothesis
import numpy as np
import tensorflow.compat.v1 as tf
from absl import flags
from hypothesis import strategies
from sklearn import metrics as sklearn_metrics

from model import Model
from tests import stress
from tests.stress import formats, program, world
from utils.data import data_check, image_files
from utils.prediction import metrics, windows
from utils.system import runtime
from utils.system.errors import UserError
from utils.weights import checkpoints

SECONDS, MEMORY = 300.0, 6 << 30

sizes = strategies.integers(1, 50)


def run(case):
    """Tests one property with examples from the case's seed; hypothesis simplifies an example that fails."""
    kind = KINDS[case.number % len(KINDS)]
    print('property: %s' % kind.__name__)
    if kind in EXAMPLES:
        @hypothesis.seed(int(case.rng.randint(2 ** 31 - 1)))
        @hypothesis.settings(max_examples=EXAMPLES[kind], deadline=None, database=None, suppress_health_check=list(
            hypothesis.HealthCheck))
        @hypothesis.given(strategies.data())
        def holds(data):
            kind(data.draw)

        holds()
    else:  # there is time for one example, and hypothesis would begin with the simplest
        kind(case)
    return stress.RIGHT


def windows_are_the_whole(draw):
    """Checks that windows cover an image evenly and that blended scores equal those of the whole image."""
    size = draw(sizes), draw(sizes)
    window = tuple(draw(strategies.integers(1, side)) for side in size)
    overlap = draw(strategies.floats(0, 0.9))
    rng = np.random.RandomState(draw(strategies.integers(0, 2 ** 32 - 1)))
    image, kernel = rng.uniform(-1, 1, size + (3,)).astype(np.float32), rng.uniform(-1, 1, (3, 4)).astype(np.float32)
    scored = []

    def score(pixels):
        scored.append(pixels.shape[:2])
        return np.tanh(pixels.dot(kernel))

    blended = np.concatenate([band.copy() for band in windows.blended(score, image, window, overlap)])
    np.testing.assert_allclose(blended, np.tanh(image.dot(kernel)), atol=1e-5)
    assert scored == [window] * windows.number(size, window, overlap)
    for side, length in zip(size, window):
        starts = windows.starts(side, length, overlap)
        steps = np.diff(starts)
        assert starts[0] == 0 and starts[-1] == side - length and len(set(starts)) == len(starts)
        assert not len(steps) or min(steps) >= 1 and max(steps) <= max(1, int(length * (1 - overlap)))


def matrix_is_scikit_learns(draw):
    """Checks the confusion matrix and the scores of random labels and predictions against scikit-learn."""
    num_classes, ignore_label = draw(strategies.integers(2, 256)), draw(strategies.sampled_from([255, 0, 1, -1, 70000]))
    rng = np.random.RandomState(draw(strategies.integers(0, 2 ** 32 - 1)))
    size = draw(sizes), draw(sizes)
    label, prediction = (rng.randint(0, num_classes, size) for _ in range(2))
    label = np.where(rng.rand(*size) < draw(strategies.floats(0, 1)), ignore_label, label)
    right = rng.rand(*size) < draw(strategies.floats(0, 1))
    prediction = np.where(right, np.clip(label, 0, num_classes - 1), prediction)
    found = metrics.confusion_matrix(label, prediction, num_classes, ignore_label)
    counted = label != ignore_label
    assert found.sum() == counted.sum()
    if not counted.any():
        return
    classes = np.arange(num_classes)
    np.testing.assert_array_equal(found, sklearn_metrics.confusion_matrix(
        label[counted], prediction[counted], labels=classes))
    scores, present = metrics.scores(found, ignore_label), np.union1d(label[counted], prediction[counted])
    present = present[present != ignore_label]  # a class that is ignored has no score
    if len(present):
        np.testing.assert_allclose(scores['iou'][present], sklearn_metrics.jaccard_score(
            label[counted], prediction[counted], labels=present, average=None))
    np.testing.assert_allclose(scores['pixel_accuracy'], (label == prediction)[counted].mean())
    assert np.isnan(np.delete(scores['iou'], present)).all()


def pixels_are_the_formulas(draw):
    """Checks that images of any depth, layout, bands and orientation become what NumPy computes, or are refused."""
    def choose(items):
        return draw(strategies.sampled_from(items))

    rng = np.random.RandomState(draw(strategies.integers(0, 2 ** 32 - 1)))
    with tempfile.TemporaryDirectory() as folder:
        stored = formats.image(choose, rng, os.path.join(folder, 'image'), choose(((9, 16), (16, 9), (40, 33))))
        image_format = formats.image_format(choose)
        print(image_format)
        wanted = formats.wanted(stored, image_format)
        try:
            found = image_files.read_image(stored.path, image_format)
        except UserError as error:
            program.check_sentence(str(error), ['image'])
            assert isinstance(wanted, str) or formats.may_be_refused(stored, image_format), error
            assert not isinstance(wanted, str) or wanted in str(error) or formats.may_be_refused(
                stored, image_format), error
            return
        assert not isinstance(wanted, str), 'it is read, but must be refused: %s' % wanted
        np.testing.assert_array_equal(found.pixels, wanted)
        warned = found.remarks.get('levels', '')
        assert warned or not formats.must_warn(stored, image_format)
        assert not warned or len(warned) <= 300 and '--image_range' in warned


def labels_are_the_formulas(draw):
    """Checks that labels of any kind get the classes of --label_map, or that there is one sentence about them."""
    def choose(items):
        return draw(strategies.sampled_from(items))

    rng = np.random.RandomState(draw(strategies.integers(0, 2 ** 32 - 1)))
    size, word = choose(((9, 16), (1, 2), (40, 33))), choose(formats.WORDS)
    with tempfile.TemporaryDirectory() as folder:
        path, label, is_no_label = formats.a_label(choose, rng, os.path.join(folder, 'label'), size)
        image = os.path.join(folder, 'image.png')
        formats.Image.new('RGB', size[::-1]).save(image)
        classes = formats.classes(word, folder)
        found = data_check.check_pairs([image], [path], classes, 1)
    wanted = formats.mapped(label, word)
    strange = ((wanted < 0) | (wanted >= formats.CLASSES)) & (wanted != 255)
    for sentence in found.problems:
        program.check_sentence(sentence, ['label'])
    if is_no_label or strange.any():
        assert len(found.problems) == 1, found.problems
        return
    assert not found.problems, found.problems
    np.testing.assert_array_equal(found.histogram, np.bincount(wanted[wanted != 255], minlength=formats.CLASSES))
    assert found.ignored == (wanted == 255).sum()


def towers_are_one(case):
    """Checks that 2 to 4 towers give one tower's losses (to 1e-5) in three updates of batches with random void pixels.

    The weights must agree too, and the distance that they have moved to 1e-4. The updates are small, because rounding
    errors grow where the loss changes quickly.
    """
    import recipe

    program.make_narrow()
    rng = case.rng
    count, part = rng.randint(2, 5), rng.randint(1, 3)
    images, labels = recipe.image(count * part, 33, 33, rng.randint(1000)), recipe.label(count * part, 33, 33, 4)
    labels[rng.rand(*labels.shape) < rng.rand(count * part, 1, 1, 1)] = 255
    labels[rng.rand(count * part) < 0.3] = 255
    values = {'encoder_name': 'res50', 'num_classes': 4, 'train_bn': False, 'learning_rate': 1e-5,
              'batch_size': count * part, 'loss': ('ce', 'ohem')[rng.randint(2)],
              'grad_update_every': rng.randint(1, 3)}
    print('%d towers of %d images each: %s' % (count, part, values))
    found = []
    for towers in (1, count):
        conf = settings(num_gpus=towers, **values)
        with tf.Graph().as_default():
            model = Model(conf)
            graph = model.training_graph(tf.constant(images), tf.constant(labels))
            with tf.Session(config=runtime.session_config(num_cpus=towers)) as sess:
                recipe.assign(sess, graph.net.variables)
                before = sess.run(graph.net.variables)
                losses = [model.train_step(sess, graph, step)[0]['loss/total'] for step in range(3)]
                after = sess.run(graph.net.variables)
                found.append((losses, after, [b - a for a, b in zip(before, after)]))
    (losses, weights, moves), (other_losses, other_weights, other_moves) = found
    moved = recipe.relative_error(*(np.concatenate([move.ravel() for move in one]) for one in (other_moves, moves)))
    print('losses %s and %s, moves apart by %g' % (losses, other_losses, moved))
    np.testing.assert_allclose(losses, other_losses, rtol=1e-5)
    assert moved <= 1e-4
    for one, other in zip(weights, other_weights):
        assert recipe.relative_error(other, one) <= 1e-5


class Killed(Exception):
    """Ends a training like a kill: nothing more is saved."""


def resumed_is_never_stopped(case):
    """Checks that a training that is killed before a random step and resumed ends like one that was never stopped."""
    program.make_narrow()
    world.make_data(case.folder)
    rng = case.rng
    values = {'save_interval': rng.randint(1, 5), 'batch_size': rng.randint(1, 3), 'num_steps': 4,
              'grad_update_every': rng.randint(1, 3), 'valid_interval': rng.randint(0, 4),
              'random_seed': rng.randint(10 ** 6), 'train_bn': bool(rng.randint(2))}
    killed_at, last = rng.randint(5), os.path.join('model', 'model.ckpt-4')
    print('killed before step %d: %s' % (killed_at, values))
    whole, stopped = (training(os.path.join(case.folder, name), case.folder, values) for name in ('whole', 'stopped'))
    Model(whole).train()
    step = Model.train_step

    def dying(model, sess, graph, number, **options):
        if number == killed_at:
            raise Killed()
        return step(model, sess, graph, number, **options)

    Model.train_step = dying
    try:
        Model(stopped).train()
    except Killed:
        pass
    Model.train_step = step
    Model(stopped).train()
    one, other = (checkpoints.read_values(os.path.join(case.folder, name, last)) for name in ('whole', 'stopped'))
    assert sorted(one) == sorted(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], name)
    one, other = (open_text(os.path.join(case.folder, name, 'log.txt')) for name in ('whole', 'stopped'))
    assert one == other and len(one.splitlines()) == 5


def training(folder, data_folder, values):
    """Returns all flags as attributes, for a training on the world's data that writes to a folder."""
    data = os.path.join(data_folder, 'data')
    places = {'modeldir': 'model', 'logdir': 'log', 'logfile': 'log.txt', 'out_dir': 'out'}
    return settings(
        data_dir=data, data_list=os.path.join(data, 'list.txt'), valid_data_list=os.path.join(data, 'list.txt'),
        num_classes=world.NUM_CLASSES, encoder_name='res50', input_height=33, input_width=33, learning_rate=1e-4,
        check_labels=False, num_threads=2, **dict(values, **{
            flag: os.path.join(folder, name) for flag, name in places.items()}))


def settings(**changed):
    """Returns all flags of main.py as attributes: the given ones, others at their defaults."""
    values = {flag.name: flag.default for flag in flags.FLAGS.flags_by_module_dict()['main']}
    return types.SimpleNamespace(**dict(values, **changed))


def open_text(path):
    with open(path) as file:
        return file.read()


KINDS = (windows_are_the_whole, matrix_is_scikit_learns, pixels_are_the_formulas, labels_are_the_formulas,
         towers_are_one, windows_are_the_whole, matrix_is_scikit_learns, pixels_are_the_formulas,
         labels_are_the_formulas, resumed_is_never_stopped)
EXAMPLES = {windows_are_the_whole: 60, matrix_is_scikit_learns: 60, pixels_are_the_formulas: 200,
            labels_are_the_formulas: 60}

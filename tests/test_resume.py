"""Trainings that are stopped and resumed end with the same weights and records as one that was never stopped."""

import csv
import glob
import os
import shutil

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from narrow_main import UNITS

from model import Model
from model_msc import Model_msc
from utils.system import interrupts
from utils.system.errors import UserError
from utils.training.run import Run
from utils.weights import checkpoints

SAMPLE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'dataset', 'sample')
STEPS = 6


class Killed(Exception):
    """Ends a training like a kill: nothing more is saved."""


@pytest.fixture
def run(tmp_path, settings, narrow):
    """Returns a function from a run's name and changed flags to the flags of a short training on the bundled sample."""
    narrow({'res50': UNITS})

    def make(name, **changed):
        values = {flag: os.path.join(SAMPLE, listed) for flag, listed in (
            ('data_list', 'train.txt'), ('valid_data_list', 'val.txt'))}
        values.update({flag: str(tmp_path / name / flag) for flag in ('modeldir', 'logdir', 'logfile', 'out_dir')})
        values.update(data_dir=SAMPLE, num_classes=6, encoder_name='res50', input_height=33, input_width=33,
                      batch_size=2, num_steps=STEPS, save_interval=2, check_labels=False, learning_rate=1e-3,
                      valid_num_steps=2, num_threads=2)
        values.update(changed)
        return settings(**values)

    return make


def kill_in(monkeypatch, name, count):
    """Makes a method of the training loop raise Killed instead of doing its count-th call."""
    owner = Run if name == 'save' else Model
    function, calls = getattr(owner, name), []

    def dying(*args, **settings):
        calls.append(args)
        if len(calls) == count:
            raise Killed()
        return function(*args, **settings)

    monkeypatch.setattr(owner, name, dying)


def killed(monkeypatch, conf, name, count, model_class=Model):
    with monkeypatch.context() as patch:
        kill_in(patch, name, count)
        with pytest.raises(Killed):
            model_class(conf).train()


def weights(conf, step=STEPS):
    return checkpoints.read_values(os.path.join(conf.modeldir, 'model.ckpt-%d' % step))


def records(conf):
    """Returns the text of log.txt, the rows of metrics.csv without the speed, and [(step, tag)] of all event files."""
    with open(conf.logfile) as file:
        log = file.read()
    with open(os.path.join(conf.modeldir, 'metrics.csv'), newline='') as file:
        rows = list(csv.reader(file))
    speed = rows[0].index('images_per_second')
    rows = [row[:speed] + row[speed + 1:] for row in rows]
    events = [(event.step, value.tag) for path in sorted(glob.glob(os.path.join(conf.logdir, 'events*')))
              for event in tf.train.summary_iterator(path) for value in event.summary.value]
    return log, rows, events


def assert_equal_runs(one, other):
    found, wanted = weights(one), weights(other)
    assert sorted(found) == sorted(wanted)
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name], name)
    assert records(one) == records(other)


@pytest.mark.parametrize('model_class, flags', [
    (Model, {}),
    (Model, {'train_bn': False, 'valid_interval': 3}),
    (Model, {'grad_update_every': 2, 'valid_interval': 4}),
    (Model_msc, {'grad_update_every': 2, 'batch_size': 1}),
    (Model, {'num_gpus': 2}),
    (Model, {'optimizer': 'adamw', 'loss': 'ce+dice', 'schedule': 'cosine', 'warmup_steps': 2, 'valid_interval': 3}),
    (Model, {'random_rotation': 20.0, 'random_colour': [0.2, 0.3, 0.4], 'random_flip_vertical': True}),
    (Model_msc, {'decoder': 'aspp_pooling', 'num_gpus': 2}),
], ids=['trained batch norm', 'frozen', 'accumulated', 'msc', 'towers', 'adamw and dice', 'augmented',
        'image pooling'])
def test_a_run_killed_twice_equals_one_never_stopped(run, monkeypatch, model_class, flags):
    whole, stopped = run('whole', **flags), run('stopped', num_threads=3, **flags)
    model_class(whole).train()
    killed(monkeypatch, stopped, 'train_step', 4, model_class)
    killed(monkeypatch, stopped, 'save', 2, model_class)
    model_class(stopped).train()
    assert_equal_runs(stopped, whole)


def test_a_run_killed_at_all_places_in_turn_equals_one_never_stopped(run, monkeypatch):
    whole, stopped = run('whole', valid_interval=4), run('stopped', valid_interval=4)
    Model(whole).train()
    for name, count in (('train_step', 1), ('save', 1), ('validate', 1), ('save', 1), ('train_step', 4),
                        ('validate', 1), ('validate', 2)):
        killed(monkeypatch, stopped, name, count)
    Model(stopped).train()
    assert_equal_runs(stopped, whole)
    assert checkpoints.checkpoint_steps(stopped.modeldir, checkpoints.BEST) == checkpoints.checkpoint_steps(
        whole.modeldir, checkpoints.BEST)


def test_a_signal_in_a_validation_is_obeyed_and_the_validation_made_up_for(run, monkeypatch, capsys):
    whole, stopped = run('whole', valid_interval=STEPS), run('stopped', valid_interval=STEPS)
    Model(whole).train()
    validate = Model.validate

    def signalled(model, sess, net, run, validation, step):
        run.signal.number = 15 if step == STEPS else None
        validate(model, sess, net, run, validation, step)

    with monkeypatch.context() as patch:
        patch.setattr(Model, 'validate', signalled)
        with pytest.raises(interrupts.Interrupted):
            Model(stopped).train()
    assert records(stopped)[1][-1][-1] == ''
    Model(stopped).train()  # no step is left, but the validation is
    assert_equal_runs(stopped, whole)
    capsys.readouterr()
    Model(stopped).train()
    assert 'a finished training of --num_steps=%d:' % STEPS in capsys.readouterr().out


def test_a_log_of_another_run_is_kept_and_the_own_one_written_anew(run, monkeypatch):
    whole, stopped = run('whole'), run('stopped')
    Model(whole).train()
    killed(monkeypatch, stopped, 'train_step', 4)
    with open(stopped.logfile, 'w') as file:
        file.write('0, 7.0\n1, 8.0\n')
    Model(stopped).train()
    assert_equal_runs(stopped, whole)
    with open(stopped.logfile + '.old') as file:
        assert file.read() == '0, 7.0\n1, 8.0\n'


def test_records_that_lack_steps_begin_anew(run, monkeypatch, capsys):
    conf = run('stopped')
    killed(monkeypatch, conf, 'train_step', 4)
    with open(os.path.join(conf.modeldir, 'metrics.csv'), 'w') as file:
        file.write('step,cross')
    Model(conf).train()
    log, rows, _ = records(conf)
    assert [row[0] for row in rows] == ['step', '3', '4', '5', '6'] and len(log.splitlines()) == 4
    assert 'does not hold all steps up to 2' in capsys.readouterr().out
    with open(conf.logfile + '.old') as file:
        assert len(file.read().splitlines()) == 3


def test_after_lost_records_nothing_more_is_lost(run, monkeypatch, capsys):
    """The best checkpoint whose score is lost stays beside the new one; later resumes read the new records."""
    scores = iter([0.9, 0.1, 0.2, 0.3, 0.4])
    monkeypatch.setattr('model.metrics.scores', lambda matrix, ignore_label=None: {
        'mean_iou': next(scores), 'pixel_accuracy': 0.0, 'iou': np.zeros(6)})
    conf = run('stopped', valid_interval=2, num_steps=2)
    Model(conf).train()
    (metrics,) = glob.glob(os.path.join(conf.modeldir, 'metrics.csv'))
    with open(metrics, 'w') as file:
        file.write('step,cross')
    conf.num_steps = 4
    Model(conf).train()
    assert 'does not hold all steps up to 2' in capsys.readouterr().out
    conf.num_steps = 6
    Model(conf).train()
    _, rows, _ = records(conf)
    assert [row[0] for row in rows] == ['step', '3', '4', '5', '6']
    assert 'does not hold' not in capsys.readouterr().out and not os.path.exists(metrics + '.old2')
    assert checkpoints.checkpoint_steps(conf.modeldir, checkpoints.BEST) == [0, 6]


def test_another_loss_adds_its_columns_and_keeps_the_scores_and_the_best_checkpoint(run, tmp_path, monkeypatch):
    Model(run('changed', valid_interval=2)).train()
    (tmp_path / 'names.txt').write_text(''.join('%s %d 0 0\n' % (name, i) for i, name in enumerate('abccde')))
    conf = run('changed', valid_interval=2, loss='ce+dice', resume='must', palette=str(tmp_path / 'names.txt'))
    _, before, _ = records(conf)
    best = checkpoints.checkpoint_steps(conf.modeldir, checkpoints.BEST)
    monkeypatch.setattr('model.metrics.scores', lambda matrix, ignore_label=None: {
        'mean_iou': 0.0, 'pixel_accuracy': 0.0, 'iou': np.zeros(6)})
    for steps in STEPS + 2, STEPS + 4:
        conf.num_steps = steps
        Model(conf).train()
    log, rows, _ = records(conf)
    middle, scores = before[0].index('precision/class 0'), ['precision', 'recall', 'f1']
    assert rows[0] == before[0][:2] + ['dice'] + before[0][2:middle] + [
        '%s/%s' % (score, name) for score in scores for name in 'abccde'] + before[0][middle + 18:-6] + [
            'iou/' + name for name in 'abccde']
    assert rows[1:STEPS + 2] == [row[:2] + [''] + row[2:] for row in before[1:]]
    assert [row[0] for row in rows[1:]] == [str(step) for step in range(STEPS + 5)]
    assert len(log.splitlines()) == STEPS + 5
    assert all(rows[STEPS + 2][:4]) and rows[STEPS + 3][-7] == '0.0'
    assert checkpoints.checkpoint_steps(conf.modeldir, checkpoints.BEST) == best


def test_without_the_records_of_a_step_its_validation_is_not_made_up_for(run, monkeypatch):
    conf = run('stopped', valid_interval=2, num_steps=STEPS + 2)
    killed(monkeypatch, conf, 'train_step', 6)
    os.remove(os.path.join(conf.modeldir, 'metrics.csv'))
    Model(conf).train()
    _, rows, _ = records(conf)
    assert rows[0][0] == 'step' and [row[0] for row in rows[1:]] == ['5', '6', '7', '8']
    os.remove(os.path.join(conf.modeldir, 'metrics.csv'))
    Model(conf).train()  # it is finished
    assert not os.path.exists(os.path.join(conf.modeldir, 'metrics.csv'))


def test_a_file_that_goes_bad_is_named_after_the_weights_are_saved(run, tmp_path, monkeypatch):
    shutil.copytree(SAMPLE, str(tmp_path / 'data'))
    changed = {'data_dir': str(tmp_path / 'data'), 'valid_interval': 3, 'save_interval': 100, 'grad_update_every': 2}
    whole, stopped = run('whole', **changed), run('stopped', **changed)
    Model(whole).train()
    validate = Model.validate
    with open(os.path.join(SAMPLE, 'val.txt')) as file:
        broken = tmp_path / 'data' / file.readline().split()[0].lstrip('/')
    content = broken.read_bytes()

    def spoil(*args):
        if args[-1] == 3:
            broken.write_bytes(content[:700])
        return validate(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Model, 'validate', spoil)
        with pytest.raises(UserError, match=broken.name):
            Model(stopped).train()
    assert checkpoints.checkpoint_steps(stopped.modeldir) == [0, 3]
    broken.write_bytes(content)
    step = Model.train_step

    def broken_later(*args, **settings):
        if args[3] == 5:
            raise tf.errors.OutOfRangeError(None, None, 'closed')
        return step(*args, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(Model, 'train_step', broken_later)
        with pytest.raises(tf.errors.OutOfRangeError):
            Model(stopped).train()
    assert checkpoints.checkpoint_steps(stopped.modeldir) == [0, 3, 4]
    Model(stopped).train()
    assert_equal_runs(stopped, whole)


def test_a_file_that_goes_bad_in_the_middle_of_an_accumulation(run, monkeypatch):
    """The iterations of an unfinished step do not change the checkpoint, not even batch norm's averages."""
    whole, stopped = (run(name, grad_update_every=3, batch_size=1) for name in ('whole', 'stopped'))
    Model(whole).train()
    step = Model.train_step

    def ends_early(model, sess, graph, number, **settings):
        if number == 3:
            for _ in range(2):
                sess.run(graph.update.accumulate)
            raise tf.errors.OutOfRangeError(None, None, 'closed')
        return step(model, sess, graph, number, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(Model, 'train_step', ends_early)
        with pytest.raises(tf.errors.OutOfRangeError):
            Model(stopped).train()
    assert checkpoints.checkpoint_steps(stopped.modeldir) == [0, 2]
    Model(stopped).train()
    assert_equal_runs(stopped, whole)


def test_the_best_checkpoint_has_the_highest_mean_iou(run, monkeypatch):
    """All validations share one graph; a new one for each would fill the memory."""
    built, scores_of = [], Model.scores
    monkeypatch.setattr(Model, 'scores', lambda model, images: built.append(1) or scores_of(model, images))
    conf = run('best', valid_interval=2)
    Model(conf).train()
    assert len(built) == 1
    _, rows, _ = records(conf)
    column = rows[0].index('mean_iou')
    scores = {int(row[0]): float(row[column]) for row in rows[1:] if row[column]}
    assert sorted(scores) == [0, 2, 4, 6]
    best = min(step for step in scores if scores[step] == max(scores.values()))
    assert checkpoints.checkpoint_steps(conf.modeldir, checkpoints.BEST) == [best]
    for step in ('best', 6, 4):
        scored = Model(run('best', valid_step=step)).test()
        assert scored['mean_iou'] == scores[best if step == 'best' else step]
        row = rows[1 + (best if step == 'best' else step)]
        assert [float(cell) for cell in row[column + 2:]] == pytest.approx(list(scored['iou']), nan_ok=True)

"""Complete trainings of narrow networks in this process: what they refuse, repeat, and leave for test and predict."""

import os

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from narrow_main import UNITS

from model import Model
from model_msc import Model_msc
from utils.net.compat import Input
from utils.system.errors import UserError
from utils.weights import pretrained, run_settings

SAMPLE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'dataset', 'sample')


@pytest.fixture
def sample(tmp_path, settings, narrow):
    """Returns a function that returns the flags of a short training of a tiny encoder on the bundled sample."""
    narrow({'res50': UNITS})
    lists = {flag: os.path.join(SAMPLE, name) for flag, name in (
        ('data_list', 'train.txt'), ('valid_data_list', 'val.txt'), ('test_data_list', 'val.txt'))}
    folders = {flag: str(tmp_path / flag) for flag in ('modeldir', 'logdir', 'logfile', 'out_dir')}

    def make(**changed):
        values = dict(lists, data_dir=SAMPLE, num_classes=6, encoder_name='res50', input_height=33, input_width=33,
                      batch_size=2, num_steps=3, save_interval=2, check_labels=False, learning_rate=1e-3, **folders)
        values.update(changed)
        return settings(**values)

    return make


def train(conf, model_class=Model):
    """Trains and returns the text of the log."""
    model_class(conf).train()
    with open(conf.logfile) as file:
        return file.read()


def losses_of(conf, model_class):
    return np.array([float(line.split(', ')[1]) for line in train(conf, model_class).splitlines()])


@pytest.mark.parametrize('model_class, every', [(Model, 1), (Model, 2), (Model_msc, 2)])
def test_the_same_seed_gives_the_same_losses(sample, tmp_path, model_class, every):
    """The losses agree up to rounding, with any number of reading threads; another seed gives other losses."""
    logs = [losses_of(sample(modeldir=str(tmp_path / str(run)), num_threads=threads, random_seed=seed,
                         grad_update_every=every), model_class)
            for run, (threads, seed) in enumerate([(1, 5), (4, 5), (3, 6)])]
    np.testing.assert_allclose(logs[0], logs[1], rtol=1e-5)
    assert len(logs[0]) == 4 and max(abs(logs[0] - logs[2])) > 1e-2


def test_another_run_is_not_replaced(sample, capsys):
    log = train(sample())
    assert 'note' not in capsys.readouterr().out
    for conf, model_class, changed in ((sample(learning_rate=2e-3), Model, 'learning_rate=0.001 (now 0.002)'),
                                       (sample(), Model_msc, 'model=Model (now Model_msc)')):
        with pytest.raises(UserError, match='--modeldir') as error:
            train(conf, model_class)
        assert changed in str(error.value)
    with open(sample().logfile) as file:
        assert file.read() == log  # the log is unchanged
    assert Model_msc(sample(valid_num_steps=2)).test()['pixel_accuracy'] >= 0  # weights of one scale, three scales
    capsys.readouterr()
    assert train(sample()) == log
    assert 'a finished training of --num_steps=3:' in capsys.readouterr().out
    assert train(sample(resume='never')).splitlines()[0][:8] == log[:8]
    out = capsys.readouterr().out
    assert 'the older run is kept in' in out and 'note: the earlier ' in out and 'logfile.old\n' in out
    assert 'note: %s holds events of other trainings too' % sample().logdir in out
    with open(sample().logfile + '.old') as file:
        assert file.read() == log


def test_test_and_predict_take_the_input_of_the_training(sample, capsys):
    train(sample(img_mean=['1', '2', '3.5'], channel_order='rgb', compat='caffe'))
    assert run_settings.read(sample().modeldir)['input'] == Input('rgb', (1, 2, 3.5))
    assert Model(sample(compat='caffe'))._follow_training('test')[0] == Input('rgb', (1, 2, 3.5))
    net_input, _ = Model(sample(compat='caffe', img_mean=['7', '8', '9']))._follow_training('predict')
    assert net_input == Input('rgb', (7, 8, 9))
    assert 'note' not in capsys.readouterr().out
    weights = pretrained.open_pretrained(sample().modeldir, 'res50')
    assert (weights.compat, weights.input) == ('caffe', Input('rgb', (1, 2, 3.5)))
    model = Model(sample())
    model._follow_training('test')
    assert (model.conf.compat, model.numerics.epsilon) == ('caffe', 1e-5)
    assert '--compat=caffe, as in the training' in capsys.readouterr().out
    with pytest.raises(UserError, match='was trained with --compat=caffe, but this run has --compat=slim'):
        Model(sample(compat='slim'))._follow_training('test')


def test_a_diverged_training_keeps_its_good_checkpoints(sample):
    conf = sample(learning_rate=1e30, save_interval=1, num_steps=10)
    with pytest.raises(UserError, match='not finite in step .*--learning_rate'):
        train(conf)
    for name in os.listdir(conf.modeldir):
        if name.endswith('.index'):
            reader = tf.train.load_checkpoint(os.path.join(conf.modeldir, name[:-len('.index')]))
            assert all(np.isfinite(reader.get_tensor(key)).all() for key in reader.get_variable_to_shape_map())

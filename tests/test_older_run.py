"""This version resumes and predicts with a run that commit e6b5847 made, which was killed in step 4.

The network is a ResNet of one unit with a 16th of the channels. tests/golden/run_e6b5847 has the files after step 2,
the losses of the uninterrupted run of six steps and the norms of its final weights.
"""

import csv
import json
import os
import shutil

import numpy as np
import pytest

from model import Model
from utils.net.blocks import BLOCKS, resnet_blocks
from utils.system.errors import UserError
from utils.weights import checkpoints

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OLD = os.path.join(ROOT, 'tests', 'golden', 'run_e6b5847')
SAMPLE = os.path.join(ROOT, 'dataset', 'sample')


@pytest.fixture
def conf(tmp_path, settings, monkeypatch):
    """Copies the run's folder; returns a function that returns the run's flags with changes."""
    monkeypatch.setitem(BLOCKS, 'res50', resnet_blocks((0, 0, 0, 1), depth=16))
    modeldir = tmp_path / 'model'
    modeldir.mkdir()
    for name in os.listdir(OLD):
        shutil.copy(os.path.join(OLD, name), str(modeldir))
    shutil.move(str(modeldir / 'log.txt'), str(tmp_path / 'log.txt'))
    path = modeldir / 'settings.json'
    path.write_text(path.read_text().replace('REPO', ROOT))

    def make(**changed):
        values = {flag: str(tmp_path / name) for flag, name in (
            ('modeldir', 'model'), ('logfile', 'log.txt'), ('logdir', 'log'), ('out_dir', 'output'))}
        values.update(
            data_list=os.path.join(SAMPLE, 'train.txt'), valid_data_list=os.path.join(SAMPLE, 'val.txt'),
            data_dir=SAMPLE, num_classes=6, encoder_name='res50', input_height=33, input_width=33, batch_size=2,
            num_steps=6, save_interval=2, check_labels=False, learning_rate=1e-3, valid_num_steps=2, valid_interval=2,
            num_threads=2)
        return settings(**dict(values, **changed))

    return make


def test_it_resumes_and_ends_as_it_would_have(conf, capsys):
    with open(os.path.join(OLD, 'end.json')) as file:
        end = json.load(file)
    Model(conf()).train()
    printed = capsys.readouterr().out
    assert 'resumed from' in printed and 'step 3 of 6 is next' in printed and 'anew' not in printed
    with open(conf().logfile) as file:
        losses = [float(line.split(', ')[1]) for line in file]
    np.testing.assert_allclose(losses, end['losses'], rtol=1e-4)
    found = checkpoints.read_values(os.path.join(conf().modeldir, 'model.ckpt-6'))
    assert sorted(found) == sorted(end['norms'])
    for name, norm in end['norms'].items():
        np.testing.assert_allclose(np.linalg.norm(found[name].astype(np.float64)), norm, rtol=1e-3, err_msg=name)
    with open(os.path.join(conf().modeldir, 'metrics.csv'), newline='') as file:
        rows = list(csv.DictReader(file))
    assert [int(row['step']) for row in rows] == list(range(7))
    np.testing.assert_allclose(float(rows[-1]['mean_iou']), end['mean_iou'], atol=0.02)


def test_it_is_scored_as_it_was(conf):
    """The scores of step 2 are in metrics.csv."""
    with open(os.path.join(OLD, 'metrics.csv'), newline='') as file:
        row = list(csv.DictReader(file))[2]
    scores = Model(conf()).test()
    np.testing.assert_allclose([scores['mean_iou'], scores['pixel_accuracy']],
                               [float(row['mean_iou']), float(row['pixel_accuracy'])], atol=1e-3)


@pytest.mark.parametrize('changed, words', [
    ({'loss': 'dice'}, 'loss=ce (now dice)'), ({'optimizer': 'adamw'}, 'optimizer=momentum (now adamw)'),
    ({'decoder': 'aspp_pooling'}, 'decoder=aspp (now aspp_pooling)'), ({'random_rotation': 5.0}, 'random_rotation=0'),
])
def test_a_setting_that_it_did_not_have_has_the_value_of_then(conf, changed, words):
    with pytest.raises(UserError) as error:
        Model(conf(**changed)).train()
    assert words in str(error.value)

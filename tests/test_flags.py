"""Flags as records: what they must say, which options read them, and what changes of them mean."""

import contextlib
import os

import pytest
from absl import flags
from absl.testing import flagsaver
from narrow_main import UNITS

import main
from model import Model
from utils.net.compat import Input
from utils.system import command_line, run_settings
from utils.system.command_line import NETWORK, NOTHING, RECORDS, RESULT
from utils.system.errors import UserError
from utils.weights import checkpoints

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SAMPLE = os.path.join(ROOT, 'dataset', 'sample')
# Read by options for which they have no effect, as all read what stands in a class that they share.
SHARED = {
    'option': {'xla', 'num_gpus', 'mixed_precision'},  # main.run_option
    'Model': {'compat', 'eval_scales', 'eval_flip', 'eval_merge', 'train_bn', 'freeze_encoder', 'pretrain_file',
              'mixed_precision', 'num_gpus', 'variables_on', 'random_seed'},
    'prepare': {'xla', 'deterministic'},
}


class Noted(object):
    """Flags as attributes, and the names of those that were read."""

    def __init__(self, values):
        self.__dict__['values'], self.__dict__['read'] = values, set()

    def __getattr__(self, name):
        if name not in self.values:
            raise AttributeError(name)
        self.read.add(name)
        return self.values[name]


@pytest.fixture(scope='module')
def read_by(tmp_path_factory):
    """{option: names of the flags that it read}, each run once with all that flags switch on."""
    from utils.net.blocks import BLOCKS, resnet_blocks
    folder, found, blocks = tmp_path_factory.mktemp('flags'), {}, dict(BLOCKS)
    values = {flag.name: flag.default for flag in flags.FLAGS.flags_by_module_dict()['main']}
    values.update({'%sdata_list' % kind: os.path.join(SAMPLE, name) for kind, name in (
        ('', 'train.txt'), ('valid_', 'val.txt'), ('test_', 'val.txt'))})
    values.update({name: str(folder / name) for name in ('modeldir', 'logdir', 'logfile', 'out_dir', 'export_dir')})
    values.update(data_dir=SAMPLE, num_classes=6, encoder_name='res50', input_height=33, input_width=33, batch_size=2,
                  num_steps=1, learning_rate=1e-4, valid_interval=1, valid_num_steps=1, test_num_steps=1, loss='ohem',
                  random_scale_range=[0.5, 1.0], num_threads=2, report=True)
    with pytest.MonkeyPatch.context() if hasattr(pytest, 'MonkeyPatch') else contextlib.ExitStack() as patch:
        patch.setattr(command_line, 'own_flags', lambda: [])  # or metrics.json tells all of them
        BLOCKS.update(res50=resnet_blocks(UNITS, depth=16))
        try:
            for option in RECORDS['option'].options:
                noted = Noted(dict(values, option=option))
                patch.setattr(main, 'FLAGS', noted)
                main.main()
                found[option] = noted.read
        finally:
            BLOCKS.update(blocks)
    return found


@pytest.mark.parametrize('option', RECORDS['option'].options)
def test_what_an_option_reads_is_declared_and_the_other_way_round(read_by, option):
    declared = {name for name, record in RECORDS.items() if option in record.options}
    assert read_by[option] - declared <= set.union(*SHARED.values())
    idle = {name for name in declared if RECORDS[name].needs in ('crf', 'pretrain_file')} | {'image_dir', 'test_data_list'}
    assert declared - read_by[option] <= idle


def test_show(read_by):
    for option in RECORDS['option'].options:
        declared = {name for name, record in RECORDS.items() if option in record.options}
        print(option, 'EXTRA', sorted(read_by[option]-declared), 'IDLE', sorted(declared - read_by[option]))

"""Measures the parts of the time from a command to its first result: one predicted photo, or one training step.

    python benchmarks/startup.py [--rounds=3]

Every measurement runs in a separate process. A part is the time spent in the functions listed in PARTS; 'rest' is the
remaining time: the interpreter, the project's imports, reading and writing files.
"""

import collections
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from absl import flags
from tqdm import tqdm

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.path.insert(0, ROOT)

from utils.system import command_line, runtime  # noqa: E402
from utils.system.errors import UserError  # noqa: E402

IMPORT = 'import of TensorFlow'
# {option: [(part, module, dotted name of the function in it)]}. The network runs in the parts named 'first ...'.
PARTS = {
    'predict': [('graph', 'utils.prediction.predictor', 'Predictor.build'),
                ('weights', 'utils.prediction.predictor', 'Predictor.load'),
                ('first mask', 'utils.prediction.predictor', 'Predictor.predict')],
    'train': [('graph', 'model', 'Model.training_graph'),
              ('initial values', 'utils.training.run', 'Run._load'),
              ('first step', 'model', 'Model.train_step'),
              ('checkpoint', 'utils.training.run', 'Run.save')],
}


def timed(owner, name, part, seconds):
    """Wraps a function of a module or class so that it adds its time to seconds[part]."""
    function = getattr(owner, name)

    def call(*args, **kwargs):
        started = time.time()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[part] += time.time() - started
    setattr(owner, name, call)


def child(option, arguments, path):
    """Runs main.py in this process, writes {part: seconds} to a JSON file and returns the exit code."""
    import main
    seconds = collections.Counter()
    timed(runtime, 'import_tensorflow', IMPORT, seconds)
    run_option = main.run_option

    def run_timed(model_class):
        for part, module, dotted in PARTS[option]:
            owner = __import__(module, fromlist=['*'])
            *owners, name = dotted.split('.')
            for inner in owners:
                owner = getattr(owner, inner)
            timed(owner, name, part, seconds)
        run_option(model_class)

    main.run_option = run_timed
    sys.argv = ['main.py', '--option=' + option] + arguments
    code = command_line.run(main.main, default_args=main.sample_args)
    with open(path, 'w') as file:
        json.dump(seconds, file)
    return code


def measure(option, arguments, folder):
    """Runs a command in a new process; returns {part: seconds}, including 'rest' and 'total'."""
    path = os.path.join(folder, 'seconds.json')
    started = time.time()
    done = subprocess.run([sys.executable, os.path.abspath(__file__), 'child', option, path] + arguments, cwd=folder,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding='utf-8', errors='replace')
    total = time.time() - started
    if done.returncode:
        raise UserError('main.py --option=%s failed: %s' % (option, done.stdout[-300:]))
    with open(path) as file:
        seconds = json.load(file)
    return dict(seconds, rest=total - sum(seconds.values()), total=total)


def main():
    network = ['--encoder_name=deeplab', '--num_classes=21', '--modeldir=model']
    photo = os.path.join(ROOT, 'dataset', 'prediction.png')
    lists = ['--flagfile=' + os.path.join(ROOT, 'dataset', 'sample.flags'), '--palette=voc']
    jobs = {'train': lists + network + ['--num_steps=1', '--batch_size=1', '--save_interval=1', '--valid_interval=0'],
            'predict': lists + network + ['--image=' + photo]}
    with tempfile.TemporaryDirectory() as folder, tqdm(total=2 * flags.FLAGS.rounds, desc='startup') as bar:
        rounds = collections.defaultdict(list)
        for _ in range(flags.FLAGS.rounds):
            for option, arguments in jobs.items():  # the prediction needs the training's weights
                rounds[option].append(measure(option, arguments + (
                    ['--resume=never'] if option == 'train' else []), folder))
                bar.update()
    for option, found in rounds.items():
        print('\n%s, ResNet-101: seconds, median of %d' % (option, len(found)))
        for part in [IMPORT] + [part for part, _, _ in PARTS[option]] + ['rest', 'total']:
            print('%-22s %5.2f' % (part, statistics.median(one.get(part, 0.0) for one in found)))


if __name__ == '__main__':
    if sys.argv[1:2] == ['child']:
        sys.exit(child(sys.argv[2], sys.argv[4:], sys.argv[3]))
    command_line.DEFINE_whole('rounds', 3, 'how many times each command is measured', lower_bound=1)
    sys.exit(command_line.run(main))

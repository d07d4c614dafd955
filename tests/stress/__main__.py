"""Tries to break the program for some minutes: python -m tests.stress --minutes=N --seed=S [--only=part,part]."""

import argparse
import collections
import importlib
import importlib.util
import os
import shutil
import sys
import tempfile
import time

from tqdm import tqdm

from tests import stress
from tests.stress import harness

ROW = '%-11s %7s %7s %8s %9s %10s %10s'


def flags():
    parser = argparse.ArgumentParser(prog='python -m tests.stress', description=__doc__)
    parser.add_argument('--minutes', type=float, default=10, help='for all parts together')
    parser.add_argument('--seed', type=int, default=1, help='of all cases')
    parser.add_argument('--only', default='', help='parts, with commas between them: ' + ','.join(parts()))
    parser.add_argument('--case', type=int, default=None, help='this case alone, of the one part that --only names')
    parser.add_argument('--folder', default=None, help='new folder for what failed cases leave; by default a temporary '
                        'one')
    parser.add_argument('--patience', type=float, default=1, help='factor on how long a case may take, for a busy '
                        'machine')
    conf = parser.parse_args()
    conf.only = conf.only.split(',') if conf.only else parts()
    unknown = sorted(set(conf.only) - set(parts()))
    if unknown:
        parser.error('no part is called %s; there are %s' % (unknown[0], ', '.join(parts())))
    if conf.case is not None and len(conf.only) > 1:
        parser.error('--case needs --only=PART')
    return conf


def parts():
    """Returns the names of the parts whose modules exist."""
    return [name for name in stress.PARTS if importlib.util.find_spec('tests.stress.' + name)]


def run_part(name, conf, folder, seconds):
    """Runs the cases of a part that can start within `seconds` and returns [Outcome]; prints failures at once."""
    part, outcomes = importlib.import_module('tests.stress.' + name), []
    run = harness.Run(conf.seed, folder, seconds, conf.patience)
    os.makedirs(folder)
    started = time.time()
    prepared = harness.prepare(part, folder)
    if not prepared.kind:
        print('FAILED: %s could not be prepared (%s); see %s' % (name, prepared.text, folder))
        return [prepared]
    last = getattr(part, 'CASES', None)
    numbers = iter(range(last or sys.maxsize)) if conf.case is None else iter([conf.case])
    with tqdm(total=round(seconds), desc=name, unit='s', bar_format='{desc}: {bar:20} {elapsed}<{remaining}{postfix}',
              mininterval=1.0) as bar:
        for number in numbers:
            outcome = harness.run_case(part, name, number, run)
            outcomes.append(outcome)
            if not outcome.kind:
                tqdm.write('FAILED: %s, case %d: %s\n  files: %s\n  again: python -m tests.stress --only=%s --case=%d '
                           '--seed=%d --minutes=%g' % (name, number, outcome.text, os.path.join(folder, '%s-%d*' % (
                               name, number)), name, number, conf.seed, seconds / 60))
            taken = time.time() - started
            bar.set_postfix_str(', case %d, %d failed' % (number, failed(outcomes)), refresh=False)
            bar.update(min(round(taken), bar.total) - bar.n)
            if taken > seconds:
                break
    if hasattr(part, 'summary') and not failed(outcomes):
        print(part.summary(os.path.join(folder, 'shared')))
    return outcomes


def failed(outcomes):
    return sum(not outcome.kind for outcome in outcomes)


def print_table(outcomes):
    """Prints a row for each part of {name: [Outcome]}."""
    print(ROW % ('part', 'cases', 'right', 'refused', 'failures', 'slowest', 'memory'))
    for name, ended in outcomes.items():
        kinds = collections.Counter(outcome.kind for outcome in ended)
        print(ROW % (name, len(ended), kinds[stress.RIGHT], kinds[stress.REFUSED], kinds[''],
                     '%.1f s' % max([outcome.seconds for outcome in ended] or [0]),
                     '%.0f MB' % (max([outcome.memory for outcome in ended] or [0]) / 1e6)))


def main():
    conf = flags()
    from utils.system import runtime
    print('TensorFlow %s, seed %d' % (runtime.import_tensorflow().__version__, conf.seed))
    for module in ('model', 'model_msc', 'main'):  # imported before the forks, so that each case need not import them
        importlib.import_module(module)
    folder = os.path.abspath(conf.folder or tempfile.mkdtemp(prefix='stress-'))
    end, outcomes = time.time() + 60 * conf.minutes, collections.OrderedDict()
    try:
        for place, name in enumerate(conf.only):
            seconds = max(1.0, (end - time.time()) / (len(conf.only) - place))
            outcomes[name] = run_part(name, conf, os.path.join(folder, name), seconds)
    except KeyboardInterrupt:
        print('\ninterrupted')
    print_table(outcomes)
    failures = sum(map(failed, outcomes.values()))
    if failures:
        print('%d failed; their files are in %s' % (failures, folder))
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return int(failures > 0)


if __name__ == '__main__':
    sys.exit(main())

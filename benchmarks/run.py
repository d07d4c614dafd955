"""Measures speed and memory against the plain reference form and against the floor of a matrix product.

    python benchmarks/run.py [--only=deeplab_train,reader] [--output=benchmarks/results.json]

Each measurement runs in a new process. All forms of a row are measured in turn, round after round, because the speed
of a shared machine changes over hours. A figure is the median over the rounds of the medians over the steps; a ratio is
the median of the rounds' ratios. The floor is the time of the row's operations at the speed of a float32 matrix
product, sgemm, which is measured in the same process between the steps. The floor of bfloat16 steps (the product's
--mixed_precision) comes from a bfloat16 product instead. For ratios "at equal sgemm", times are first divided by the
time of the float32 product; if these ratios differ much from the others, the speed of the machine was not steady.
"""

import collections
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time

from absl import flags
from tqdm import tqdm

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.path.insert(0, ROOT)

from utils.system import command_line, output_files, runtime  # noqa: E402
from utils.system.errors import UserError  # noqa: E402

FLAGS = flags.FLAGS
TIMEOUT = 900  # seconds per process

PRODUCT, BFLOAT16 = 'product', 'product, bfloat16'
ONEDNN, DEFAULT = 'reference, oneDNN', 'reference, default'
DEFAULT_TEXT = "reference with TensorFlow's default"
OPENVINO = 'OpenVINO'
FORMS = (PRODUCT, BFLOAT16, ONEDNN, DEFAULT, OPENVINO)

# what: the measurement in measure.py; settings: its arguments; forms: the forms to measure
Row = collections.namedtuple('Row', 'what settings forms')
DILATED_TYPES = ('decompose', 'smooth_GI', 'smooth_SSC')
SMOOTH_TYPES = DILATED_TYPES[1:]


# ---- rows and targets ----

def all_rows(quick, cores):
    """Returns {name: Row}, starting with the rows of the most important targets."""
    crop, small, photo, feature_map = (
        ([33, 33], [33, 33], [40, 48], [5, 5]) if quick else ([321, 321], [161, 161], [360, 480], [41, 41]))
    both = (PRODUCT, ONEDNN)
    res50 = {'encoder_name': 'res50', 'size': small, 'budget': 3}
    rows = collections.OrderedDict()
    measured = (PRODUCT, BFLOAT16, ONEDNN, DEFAULT)
    rows['deeplab_train'] = Row('train', {'batch': 2, 'size': crop}, measured)
    rows['deeplab_predict'] = Row('predict', {'size': photo}, measured)
    rows['deeplab_exported'] = Row('exported', {'size': photo}, (PRODUCT, OPENVINO))
    rows['msc_train'] = Row('train', {'size': crop, 'multi_scale': True}, both)
    rows['res50_train'] = Row('train', dict(res50, batch=2), both + (DEFAULT,))
    for dilated_type in DILATED_TYPES:
        rows['res50_train_' + dilated_type] = Row('train', dict(res50, batch=2, dilated_type=dilated_type), (PRODUCT,))
    rows['res50_predict'] = Row('predict', res50, both)
    for dilated_type in DILATED_TYPES:
        rows['res50_predict_' + dilated_type] = Row('predict', dict(res50, dilated_type=dilated_type), (PRODUCT,))
    for dilated_type in SMOOTH_TYPES:
        rows['mixing_' + dilated_type] = Row(
            'mixing', {'dilated_type': dilated_type, 'batch': 2, 'size': feature_map, 'budget': 2}, both)
    images = {'image_size': [50, 60] if quick else [375, 500], 'batch': 2 if quick else 10, 'size': crop,
              'budget': 3}
    for threads in sorted({1, 2, cores} if cores > 1 else {1}):  # the original's reader has one thread
        rows['reader_%d' % threads] = Row(
            'reader', dict(images, threads=threads), (PRODUCT, DEFAULT) if threads == 1 else (PRODUCT,))
    rows['colours'] = Row('colours', {'size': photo, 'budget': 1}, (PRODUCT, DEFAULT))
    rows['startup'] = Row('startup', {'arguments': ['--batch_size=1'] if quick else []}, (PRODUCT,))
    return rows


def select_rows(rows, only):
    """Returns the rows that --only names, all if it is empty; raises UserError for an unknown name."""
    unknown = [name for name in only if name not in rows]
    if unknown:
        raise UserError('--only=%s: there is no row %s; the rows are %s.' % (
            ','.join(only), ', '.join(unknown), ', '.join(rows)))
    return collections.OrderedDict((name, row) for name, row in rows.items() if name in only or not only)


def without_openvino(rows):
    """Returns the rows, without the form OpenVINO if it is not installed; prints a line in that case."""
    if importlib.util.find_spec('openvino'):
        return rows
    for name, row in rows.items():
        if OPENVINO in row.forms:
            print('%s: OpenVINO is not installed: pip install -r requirements-openvino.txt' % name)
    return without(rows, OPENVINO)


def all_targets(cores):
    """Returns the targets, [(description, '<=' or '>=', limit, function of the results that gives the value)]."""
    train, predict = 'deeplab_train', 'deeplab_predict'
    targets = [
        ('train step, share of the floor', '>=', 0.85, share(train)),
        ('train step in bfloat16, share of its floor', '>=', 0.72, share(train, BFLOAT16)),
        ('train step / reference with oneDNN', '<=', 0.80, ratio(train, PRODUCT, train, ONEDNN)),
        ('train step / ' + DEFAULT_TEXT, '<=', 0.45, ratio(train, PRODUCT, train, DEFAULT)),
        ('train step, peak memory / reference', '<=', 0.70, ratio(train, PRODUCT, train, ONEDNN, 'peak_mb')),
        ('predict at unknown sizes, share of the floor', '>=', 0.98, share(predict)),
        ('predict in bfloat16, share of its floor', '>=', 1.0, share(predict, BFLOAT16)),
        ('train step in bfloat16 / in float32', '<=', 0.45, ratio(train, BFLOAT16, train, PRODUCT)),
        ('predict in bfloat16 / in float32', '<=', 0.22, ratio(predict, BFLOAT16, predict, PRODUCT)),
        ('exported model, TensorFlow / OpenVINO', '<=', 1.0,
         ratio('deeplab_exported', PRODUCT, 'deeplab_exported', OPENVINO)),
        ('msc train step / reference', '<=', 0.80, ratio('msc_train', PRODUCT, 'msc_train', ONEDNN)),
    ]
    for dilated_type in SMOOTH_TYPES:
        for option in ('train', 'predict'):
            row = 'res50_' + option
            targets.append(('%s %s / regular' % (dilated_type, option), '<=', 1.15,
                            ratio(row + '_' + dilated_type, PRODUCT, row, PRODUCT)))
        for passes in ('forward', 'with_gradients'):
            for rate in (2, 4):
                figure = 'mixing_%s_rate%d_%s' % (dilated_type, rate, passes)
                text = '%s mixing / naive, rate %d, %s, in speed' % (dilated_type, rate, passes.replace('_', ' '))
                targets.append((text, '>=', 3.0, ratio(figure, ONEDNN, figure, PRODUCT)))
    targets += [
        ('reader, 2 threads / 1 thread, in speed', '>=', 1.7, ratio('reader_1', PRODUCT, 'reader_2', PRODUCT)),
        ("reader, 1 thread / original's 1 thread, in speed", '>=', 2.0,
         ratio('reader_1', DEFAULT, 'reader_1', PRODUCT)),
        ("reader, %d threads / original's 1 thread, in speed" % cores, '>=', 2.0,
         ratio('reader_1', DEFAULT, 'reader_%d' % cores, PRODUCT)),
        ('colours / pixel by pixel, in speed', '>=', 200.0, ratio('colours', DEFAULT, 'colours', PRODUCT)),
    ]
    return targets


def share(name, form=PRODUCT):
    """Returns a function of the results that gives the seconds of the floor divided by the seconds of a form."""
    return lambda results, steady=False: median_of(results.get((name, form), {}).values(), share_of_floor)


def share_of_floor(figure):
    """Returns the seconds of the figure's operations in a matrix product of its precision, divided by its seconds."""
    return figure['gflop'] / figure.get('bfloat16_gflops', figure['sgemm_gflops']) / figure['seconds']


def ratio(name, form, other_name, other_form, field='seconds'):
    """Returns a function of the results that gives the ratio of two figures over the rounds that have both.

    With steady=True, both are first divided by the seconds of the matrix product that ran in the same process.
    """
    def of(results, steady=False):
        above, below = results.get((name, form), {}), results.get((other_name, other_form), {})
        return median_of(sorted(set(above) & set(below)), lambda i: above[i][field] / below[i][field] * (
            above[i]['sgemm_gflops'] / below[i]['sgemm_gflops'] if steady else 1))
    return of


def median_of(things, function):
    values = [function(thing) for thing in things]
    return statistics.median(values) if values else None


# ---- measuring ----

def measure(what, form, settings):
    """Runs measure.py; returns its result, or raises RuntimeError with the last line of its stderr."""
    environment = dict(os.environ, PYTHONPATH=ROOT)
    for name in ('TF_ENABLE_ONEDNN_OPTS', runtime.FROZEN_WEIGHTS):  # the product sets them by itself
        environment.pop(name, None)
    onednn = {ONEDNN: '1', DEFAULT: FLAGS.default_onednn}.get(form)
    if onednn:
        environment['TF_ENABLE_ONEDNN_OPTS'] = onednn
    job = dict(settings, what=what, form=form.split(',')[0], mixed_precision=form == BFLOAT16)
    if FLAGS.quick:
        job.update(budget=0, sgemm_side=128, files=4)
    try:
        done = subprocess.run([sys.executable, os.path.join(HERE, 'measure.py'), json.dumps(job)], env=environment,
                              cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
                              timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        raise RuntimeError('no result within %d s' % TIMEOUT)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ['exit code %d' % done.returncode])[-1])
    return json.loads(done.stdout.strip().splitlines()[-1])


def machine_facts(cores):
    """Returns (a dict of the facts on which the figures depend, a clause on why bfloat16 cannot be measured or '')."""
    facts = {form: measure('facts', form, {})['figures'][''] for form in (ONEDNN, DEFAULT)}
    machine = {'cpu': cpu_name(), 'cores': cores, 'platform': platform.platform(),
               'python': facts[DEFAULT]['python'], 'tensorflow': facts[DEFAULT]['tensorflow'],
               'onednn_by_default': facts[DEFAULT]['onednn'], 'onednn_available': facts[ONEDNN]['onednn']}
    return machine, facts[ONEDNN]['no_bfloat16']


def without(rows, form, where=lambda row: True):
    """Returns the rows; those for which `where` is true lose a form."""
    return collections.OrderedDict((name, row._replace(forms=tuple(
        one for one in row.forms if one != form or not where(row)))) for name, row in rows.items())


def cpu_name():
    if os.path.exists('/proc/cpuinfo'):
        with open('/proc/cpuinfo') as file:
            names = [line.split(':', 1)[1].strip() for line in file if line.startswith('model name')]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def run_rounds(rows, rounds, minutes, save):
    """Measures all forms of every row in turn, `rounds` times or as often as `minutes` allow, but at least once.

    Args:
      save: a function of (results, failures), called after every row.

    Returns:
      ({(figure's name, form): {round: figure}}, [sentences about what failed]).
    """
    results, failures, costs, begun = collections.defaultdict(dict), [], {}, time.monotonic()
    total = rounds * sum(len(row.forms) for row in rows.values())
    with tqdm(total=total, desc='measure', unit='process', mininterval=1.0) as bar:
        for i in range(rounds):
            for name, row in rows.items():
                started = time.monotonic()
                if i and started - begun + costs[name] > 60 * minutes:
                    bar.total -= len(row.forms)
                    continue
                for form in row.forms:
                    bar.set_postfix_str('%s %s' % (name, form))
                    try:
                        result = measure(row.what, form, row.settings)
                        for suffix, figure in result['figures'].items():
                            results[name + suffix, form][i] = dict(figure, onednn=result['onednn'])
                    except RuntimeError as error:
                        failures.append('%s, %s: %s' % (name, form, error))
                    bar.update()
                costs[name] = time.monotonic() - started
                save(results, failures)
    return results, failures


# ---- reporting ----

def summary(results):
    """Returns the medians of the figures, a list of dicts."""
    rows = []
    names = list(collections.OrderedDict.fromkeys(name for name, _ in results))
    for name, form in sorted(results, key=lambda key: (names.index(key[0]), FORMS.index(key[1]))):
        figures = results[name, form]
        values = list(figures.values())
        row = {'name': name, 'form': form, 'rounds': len(values), 'onednn': values[0]['onednn'],
               'seconds_of_rounds': [figure['seconds'] for figure in values],
               'sgemm_gflops_of_rounds': [figure['sgemm_gflops'] for figure in values]}
        for field in ('seconds', 'steps', 'gflop', 'images', 'peak_mb', 'sgemm_gflops', 'bfloat16_gflops'):
            row[field] = median_of([figure for figure in values if field in figure], lambda f, field=field: f[field])
        row['images_per_second'] = row['images'] and row['images'] / row['seconds']
        row['floor_gflops'] = row['bfloat16_gflops'] or row['sgemm_gflops']
        row['floor_seconds'] = row['gflop'] and row['gflop'] / row['floor_gflops']
        row['share_of_floor'] = row['gflop'] and median_of(values, share_of_floor)
        row['ratio_to_reference'] = ratio(name, form, name, ONEDNN)(results) or ratio(
            name, form, name, DEFAULT)(results)
        rows.append(row)
    return rows


def judged(results, targets, note):
    """Returns the targets with their values, a list of dicts; `met` is None if nothing was measured."""
    rows = []
    for text, sign, limit, value_of in targets:
        value = value_of(results)
        met = None if value is None else value <= limit if sign == '<=' else value >= limit
        rows.append({'target': text, 'limit': '%s %g' % (sign, limit), 'value': value, 'met': met,
                     'value_at_equal_sgemm': None if 'memory' in text else value_of(results, steady=True),
                     'note': note if value is None and DEFAULT_TEXT in text else ''})
    return rows


def format_table(header, lines):
    """Returns a text table; the first column is aligned left, the others right."""
    cells = [header] + [[cell if isinstance(cell, str) else short(cell) for cell in line] for line in lines]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    return '\n'.join('  '.join([line[0].ljust(widths[0])] + [
        cell.rjust(width) for cell, width in zip(line[1:], widths[1:])]).rstrip() for line in cells)


def short(value):
    if value is None:
        return '-'
    if isinstance(value, bool):
        return 'yes' if value else 'NO'
    return '%d' % round(value) if abs(value) >= 100 else '%.3g' % value


def print_report(report):
    print('\n'.join('%s: %s' % (key.replace('_', ' '), value) for key, value in sorted(report['machine'].items())))
    print()
    fields = ('seconds', 'ratio_to_reference', 'images_per_second', 'peak_mb', 'gflop', 'floor_gflops',
              'share_of_floor', 'rounds')
    print(format_table(
        ['row', 'form', 'oneDNN', 'seconds', '/ reference', 'images/s', 'peak MB', 'GFLOP', 'floor GFLOP/s',
         'share of floor', 'rounds'],
        [[row['name'], row['form'], 'on' if row['onednn'] else 'off'] + [row[field] for field in fields]
         for row in report['rows']]))
    print()
    print(format_table(['target', 'limit', 'value', 'met', 'at equal sgemm', ''], [
        [row[field] for field in ('target', 'limit', 'value', 'met', 'value_at_equal_sgemm', 'note')]
        for row in report['targets'] if row['value'] is not None or row['note']]))
    for sentence in report['empty']:
        print(sentence)
    for sentence in report['failures']:
        print('failed: ' + sentence)


def main():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    rows = without_openvino(select_rows(all_rows(FLAGS.quick, cores), FLAGS.only))
    output_files.make_dir(os.path.dirname(FLAGS.output) or '.', 'output')
    machine, no_bfloat16 = machine_facts(cores)
    note, empty = '', []
    if no_bfloat16 and any(BFLOAT16 in row.forms for row in rows.values()):
        rows, empty = without(rows, BFLOAT16), ['no row was measured in bfloat16, because %s.' % no_bfloat16]
    if machine['onednn_by_default'] == machine['onednn_available']:
        if 'deeplab_train' in rows:
            note = ('the same as with oneDNN: on by default here' if machine['onednn_by_default']
                    else 'there is no oneDNN')
        rows = without(rows, DEFAULT, where=lambda row: ONEDNN in row.forms)

    def make_report(results, failures):
        return {'machine': machine, 'quick': FLAGS.quick, 'failures': failures, 'empty': empty,
                'rows': summary(results), 'targets': judged(results, all_targets(cores), note)}

    def save(results, failures):
        output_files.save_json(make_report(results, failures), FLAGS.output)

    results, failures = run_rounds(rows, 1 if FLAGS.quick else FLAGS.rounds, FLAGS.minutes, save)
    print_report(make_report(results, failures))
    print('figures in %s%s' % (FLAGS.output, '; figures of --quick mean nothing' if FLAGS.quick else ''))
    if failures:
        raise UserError('%d of the measurements failed, as reported above.' % len(failures))


if __name__ == '__main__':
    command_line.DEFINE_path('output', os.path.join(HERE, 'results.json'), 'JSON file for all figures', output=True)
    flags.DEFINE_list('only', [], 'rows to measure; all if empty')
    flags.DEFINE_integer('rounds', 3, 'rounds over all rows', lower_bound=1)
    flags.DEFINE_float('minutes', 13.5, 'start another round of a row only if it should end by then', lower_bound=0)
    flags.DEFINE_enum('default_onednn', '', ['', '0', '1'], "TF_ENABLE_ONEDNN_OPTS of 'reference, default'; unset if "
                      'empty; 0 shows the speed on processors where oneDNN is off by default')
    flags.DEFINE_boolean('quick', False, 'try every row with tiny sizes, one step, one round; the figures mean nothing')
    sys.exit(command_line.run(main))

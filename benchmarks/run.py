"""Measures speed and memory, and compares them with a plain reference and with the speed of a matrix product.

    python benchmarks/run.py [--only=deeplab_train,colours] [--output=benchmarks/results.json]

Every measurement runs in a separate process. All forms of a row run in turn, round after round, because the speed of a
shared machine changes over time. A figure is the median over the rounds of the medians over the steps; a ratio is the
median of the ratios of all rounds. The floor is the time that the operations of a row would take at the speed of a
float32 matrix product (sgemm), which is measured in the same process between the steps. For steps in bfloat16 (the
product with --mixed_precision), the floor uses a matrix product in bfloat16. For ratios "at equal sgemm", times are
first divided by the time of the float32 product. If they differ much from the plain ratios, the machine was not steady.
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
TIMEOUT = 900  # the most seconds that a process may take

PRODUCT, BFLOAT16 = 'product', 'product, bfloat16'
ONEDNN, DEFAULT = 'reference, oneDNN', 'reference, default'
DEFAULT_TEXT = "reference with TensorFlow's default"
OPENVINO = 'OpenVINO'
FORMS = (PRODUCT, BFLOAT16, ONEDNN, DEFAULT, OPENVINO)

# what: the measurement in measure.py; settings: the fields of its job; forms: a tuple of the forms to measure
Row = collections.namedtuple('Row', 'what settings forms')
DILATED_TYPES = ('decompose', 'smooth_GI', 'smooth_SSC')
SMOOTH_TYPES = DILATED_TYPES[1:]


# ---- rows and targets ----

def all_rows(quick, cores):
    """Returns {name: Row}, with the most important rows first."""
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
    for threads in sorted({1, 2, cores} if cores > 1 else {1}):  # the reader of the original has one thread
        rows['reader_%d' % threads] = Row(
            'reader', dict(images, threads=threads), (PRODUCT, DEFAULT) if threads == 1 else (PRODUCT,))
    rows['colours'] = Row('colours', {'size': photo, 'budget': 1}, (PRODUCT, DEFAULT))
    rows['startup'] = Row('startup', {'arguments': ['--batch_size=1'] if quick else []}, (PRODUCT,))
    return rows


def select_rows(rows, only):
    """Returns the rows that --only names, or all rows if it is empty; raises UserError for an unknown name."""
    unknown = [name for name in only if name not in rows]
    if unknown:
        raise UserError('--only=%s: there is no row %s: give some of %s.' % (
            ','.join(only), ', '.join(unknown), ', '.join(rows)))
    return collections.OrderedDict((name, row) for name, row in rows.items() if name in only or not only)


def without_openvino(rows):
    """Returns the rows, without the form OpenVINO if it is not installed, in which case it prints a line."""
    if importlib.util.find_spec('openvino'):
        return rows
    for name, row in rows.items():
        if OPENVINO in row.forms:
            print('%s: OpenVINO is not installed: pip install -r requirements-openvino.txt' % name)
    return without(rows, OPENVINO)


def all_targets(cores):
    """Returns the targets: a list of (description, '<=' or '>=', limit, function that `ratio` or `share` returns)."""
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
    """Returns a function of the results that returns the floor divided by the time of a form."""
    return lambda results, steady=False: median_of(results.get((name, form), {}).values(), share_of_floor)


def share_of_floor(figure):
    """Returns the time of the figure's operations at the speed of the matrix product, divided by its own time."""
    return figure['gflop'] / figure.get('bfloat16_gflops', figure['sgemm_gflops']) / figure['seconds']


def ratio(name, form, other_name, other_form, field='seconds'):
    """Returns a function of the results that divides one figure by another, in the rounds that have both.

    With steady=True, both are first divided by the time of the matrix product in the same process.
    """
    def of(results, steady=False):
        above, below = results.get((name, form), {}), results.get((other_name, other_form), {})
        return median_of(sorted(set(above) & set(below)), lambda i: above[i][field] / below[i][field] * (
            above[i]['sgemm_gflops'] / below[i]['sgemm_gflops'] if steady else 1))
    return of


def median_of(things, function):
    """Returns the median of function(thing), or None if there are no things."""
    values = [function(thing) for thing in things]
    return statistics.median(values) if values else None


# ---- measuring ----

def measure(what, form, settings):
    """Runs measure.py and returns its result; raises RuntimeError with the last line of its error output."""
    environment = dict(os.environ, PYTHONPATH=ROOT)
    for name in ('TF_ENABLE_ONEDNN_OPTS', runtime.FROZEN_WEIGHTS):  # the product sets them itself
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
    """Returns (facts about machine and software, a clause that says why bfloat16 cannot be measured, or '')."""
    facts = {form: measure('facts', form, {})['figures'][''] for form in (ONEDNN, DEFAULT)}
    machine = {'cpu': cpu_name(), 'cores': cores, 'platform': platform.platform(),
               'python': facts[DEFAULT]['python'], 'tensorflow': facts[DEFAULT]['tensorflow'],
               'onednn_by_default': facts[DEFAULT]['onednn'], 'onednn_available': facts[ONEDNN]['onednn']}
    return machine, facts[ONEDNN]['no_bfloat16']


def without(rows, form, where=lambda row: True):
    """Returns the rows; a form is removed from those for which where(row) is true."""
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
    """Measures all forms of every row in turn, at least once.

    Args:
      rows: {name: Row}.
      rounds: the number of rounds.
      minutes: after the first round, a row is measured again only if it probably ends within this time.
      save: a function of (results, failures), which is called after every row.

    Returns:
      (results, failures): {(name of the figure, form): {round: figure}}, and a list of sentences about failures.
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


# ---- report ----

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
    """Returns the targets with their values, a list of dicts; 'met' is None if nothing was measured."""
    rows = []
    for text, sign, limit, value_of in targets:
        value = value_of(results)
        met = None if value is None else value <= limit if sign == '<=' else value >= limit
        rows.append({'target': text, 'limit': '%s %g' % (sign, limit), 'value': value, 'met': met,
                     'value_at_equal_sgemm': None if 'memory' in text else value_of(results, steady=True),
                     'note': note if value is None and DEFAULT_TEXT in text else ''})
    return rows


def format_table(header, lines):
    """Returns a table as text; the first column is left-aligned, the others are right-aligned."""
    cells = [header] + [[cell if isinstance(cell, str) else short(cell) for cell in line] for line in lines]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    return '\n'.join('  '.join([line[0].ljust(widths[0])] + [
        cell.rjust(width) for cell, width in zip(line[1:], widths[1:])]).rstrip() for line in cells)


def short(value):
    """Returns the text of a value in a table, with three significant digits."""
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
            note = ('the same as with oneDNN, which is on by default here' if machine['onednn_by_default']
                    else 'oneDNN is not available')
        rows = without(rows, DEFAULT, where=lambda row: ONEDNN in row.forms)

    def make_report(results, failures):
        return {'machine': machine, 'quick': FLAGS.quick, 'failures': failures, 'empty': empty,
                'rows': summary(results), 'targets': judged(results, all_targets(cores), note)}

    def save(results, failures):
        output_files.save_json(make_report(results, failures), FLAGS.output)

    results, failures = run_rounds(rows, 1 if FLAGS.quick else FLAGS.rounds, FLAGS.minutes, save)
    print_report(make_report(results, failures))
    print('figures in %s%s' % (FLAGS.output, ' (meaningless with --quick)' if FLAGS.quick else ''))
    if failures:
        raise UserError('%d measurements failed: see the messages above.' % len(failures))


if __name__ == '__main__':
    command_line.DEFINE_path('output', os.path.join(HERE, 'results.json'), 'JSON file for all figures', output=True)
    flags.DEFINE_list('only', [], 'comma-separated rows to measure; all rows if empty')
    flags.DEFINE_integer('rounds', 3, 'number of rounds over all rows', lower_bound=1)
    flags.DEFINE_float('minutes', 13.5, 'time limit: after the first round, a row is measured again only if it '
                       'probably ends within this time', lower_bound=0)
    flags.DEFINE_enum('default_onednn', '', ['', '0', '1'], "TF_ENABLE_ONEDNN_OPTS for 'reference, default'; unset if "
                      'empty. 0 shows the speed on processors for which TensorFlow disables oneDNN')
    flags.DEFINE_boolean('quick', False, 'try every row with tiny sizes, one step and one round; the figures are '
                         'meaningless')
    sys.exit(command_line.run(main))

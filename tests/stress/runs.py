"""Runs processes with a narrow network, one or a cluster on loopback, and checks what they write."""

import csv
import glob
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import tensorflow.compat.v1 as tf
from PIL import Image

from tests.machine import free_ports
from tests.stress import program, world
from utils.weights import checkpoints

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SAMPLE = os.path.join(ROOT, 'dataset', 'sample.flags')
POLL_SECONDS = 0.003
OUTPUTS = ('modeldir', 'logdir', 'logfile', 'out_dir')
SMALL = {'input_height': 33, 'input_width': 33, 'check_labels': 'false', 'num_threads': 1, 'learning_rate': 1e-4,
         'batch_size': 2}
TOLD = 'told.txt'
LARGE = 1 << 16  # bytes; a temporary file that is left behind must be smaller


class Run(object):
    """The processes of one command line, one per task. Task 0's output is appended to when it is restarted."""

    def __init__(self, folder, program='main', tasks=1, python=sys.executable, **flags):
        """
        Args:
          folder: an existing folder for the outputs.
          program: 'main' or 'main_msc'.
          tasks: the number of processes; more than one form a cluster on loopback.
          flags: for its flag file; by default, outputs go to the folder.
        """
        self.folder, self.tasks, self.processes = folder, tasks, {}
        self.flags = dict(SMALL, **{name: os.path.join(folder, name) for name in OUTPUTS})
        self.flags.update(flags)
        self.addresses = ['127.0.0.1:%d' % port for port in free_ports(tasks)] if tasks > 1 else []
        self._program, self._python = program, python

    def start(self, task=0, python=None, script=None):
        """Starts the process of a task, which must not be running."""
        script = script or os.path.join(ROOT, 'tests', 'narrow_main.py')
        flags = ['--%s=%s' % item for item in sorted(self.flags.items())]
        command = [python or self._python, script, self._program, '--flagfile=' + SAMPLE,
                   world.flag_file(os.path.join(self.folder, 'task%d.flags' % task), flags)]
        if self.addresses:
            command += ['--cluster=' + ','.join(self.addresses), '--task_index=%d' % task]
        with open(self.output_path(task), 'ab') as output:
            self.processes[task] = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=self.folder)
        return self.processes[task]

    def start_helpers(self):
        for task in range(1, self.tasks):
            if not self.running(task):
                self.start(task)

    def start_all(self):
        self.start_helpers()
        if not self.running(0):
            self.start(0)

    def running(self, task):
        return task in self.processes and self.processes[task].poll() is None

    def output_path(self, task):
        return os.path.join(self.folder, 'task%d.txt' % task)

    def output(self, task=0):
        with open(self.output_path(task), errors='replace') as file:
            return file.read()

    def steps(self):
        """Returns the number of lines in the log."""
        try:
            with open(self.flags['logfile']) as file:
                return len(file.read().splitlines())
        except OSError:
            return 0

    def until(self, is_so, revive=False):
        """Waits until is_so() or task 0 has ended; returns is_so(). revive: restarts helpers that have ended."""
        while not is_so():
            if not self.running(0):
                return bool(is_so())
            if revive:
                self.start_helpers()
            time.sleep(POLL_SECONDS)
        return True

    def until_told(self, words, task=0):
        assert self.until(lambda: words in self.output(task)), self.output(task)[-2000:]

    def signal(self, task, number):
        """Sends a signal and returns the exit code; None if the process had already ended."""
        if not self.running(task):
            return None
        self.processes[task].send_signal(number)
        return self.processes[task].wait()

    def finish(self):
        """Starts all tasks that are not running, waits for task 0, which must end with 0, and ends the others."""
        self.start_all()
        self.until(lambda: False, revive=True)
        assert self.processes[0].returncode == 0, self.output(0)[-2000:]
        for task in range(1, self.tasks):  # one may have been restarted just when task 0 ended
            self.signal(task, signal.SIGKILL)

    def end(self):
        for process in self.processes.values():
            process.kill()
            process.wait()

    def no_traceback(self):
        """Checks that no process printed a traceback, except for Python's own at Ctrl-C before the program begins."""
        for task in self.processes:
            for part in self.output(task).split('Traceback (most recent')[1:]:
                assert 'KeyboardInterrupt' in part and 'in run\n' not in part, part[:3000]


def never_stopped(one):
    """Returns a Run that has trained to its end; its folder is kept for later cases, which need not train again."""
    if not os.path.exists(os.path.join(one.flags['modeldir'], 'model.ckpt-%d.index' % one.flags['num_steps'])):
        os.makedirs(one.folder, exist_ok=True)
        try:
            one.finish()
        finally:
            one.end()
    return one


def tell(case, text):
    """Prints a line and saves it for the part's summary."""
    print(text, flush=True)
    with open(os.path.join(case.shared, TOLD), 'a') as file:
        file.write(text + '\n')


def told(shared):
    """Returns the lines that all cases saved with tell() in their shared folder."""
    with open(os.path.join(shared, TOLD)) as file:
        return file.read().splitlines()


# what they leave ----------------------------------------------------------------------------------------------------

def log_lines(run):
    with open(run.flags['logfile']) as file:
        return file.read().splitlines()


def metrics_rows(run):
    """Returns the rows of metrics.csv without the speed."""
    with open(os.path.join(run.flags['modeldir'], 'metrics.csv'), newline='') as file:
        return [row[:5] + row[6:] for row in csv.reader(file)]


def assert_equal(run, whole):
    """Checks that two runs have the same weights, momentum, best weights, log and metrics.csv, to the last bit."""
    for kind in (checkpoints.NEWEST, checkpoints.BEST):
        found, wanted = (checkpoints.checkpoint_steps(one.flags['modeldir'], kind) for one in (run, whole))
        assert found[-1:] == wanted[-1:], '%s: %s instead of %s' % (kind, found, wanted)
        if wanted:
            found, wanted = (checkpoints.read_values('%s/%s-%d' % (one.flags['modeldir'], kind, wanted[-1]))
                             for one in (run, whole))
            assert sorted(found) == sorted(wanted)
            for name in wanted:
                np.testing.assert_array_equal(found[name], wanted[name], name)
    assert log_lines(run) == log_lines(whole)
    assert metrics_rows(run) == metrics_rows(whole)


def assert_refused(text, code, names):
    """Checks that a process ended with exit code 1 and one sentence that contains one of `names`."""
    assert code == 1, 'exit code %s: %s' % (code, text[-1000:])
    told = program.sentences(text)
    assert len(told) == 1, '%d sentences: %s' % (len(told), text[-1000:])
    program.check_sentence(told[0], names)


def assert_whole(folder):
    """Checks that every file below a folder is complete, except for small ones with a temporary name."""
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), '**'), recursive=True)):
        name = os.path.basename(path)
        if not os.path.isfile(path):
            continue
        if '.tfevents.' in name:
            list(tf.train.summary_iterator(path))  # raises DataLossError if the file is cut off
        elif name.endswith('.index'):
            assert checkpoints.read_values(path[:-len('.index')])
        elif name.endswith('.png'):
            with Image.open(path) as image:
                image.load()
        elif name in ('log.txt', 'logfile', 'metrics.csv'):
            with open(path, 'rb') as file:
                assert file.read()[-1:] in (b'', b'\n'), path
        elif re.search(r'tempstate|\.tmp$|_temp', path):
            assert os.path.getsize(path) < LARGE, '%s: %d bytes' % (path, os.path.getsize(path))
        elif '.data-' in name:
            assert os.path.exists(re.sub(r'\.data-.*', '.index', path)) or os.path.getsize(path) < LARGE, path


def resident(pid):
    """Returns the memory of a process in bytes: (now, maximum so far)."""
    with open('/proc/%d/status' % pid) as file:
        fields = dict(line.split(':', 1) for line in file)
    return tuple(1024 * int(fields[name].split()[0]) for name in ('VmRSS', 'VmHWM'))

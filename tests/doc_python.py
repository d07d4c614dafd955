"""Runs the Python programs of README and docs on a small scale, in forks of one process that has TensorFlow imported.

    python tests/doc_python.py serve SOCKET           # imports TensorFlow, once, and waits for programs
    python tests/doc_python.py run SOCKET NAME ARGS   # the command `NAME ARGS` of a page, such as `python main.py`

A program runs in the caller's folder, with the code of TEST_FOLDER, which is a copy of the repo, and with a narrow
network (see narrow_main.py). It gets the arguments of the page and then those of `small`. If every program imported
TensorFlow, the pages would take minutes.
"""

import array
import gc
import hashlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys

IMAGENET = 'imagenet.h5'  # the file in TEST_FOLDER that `--pretrain_file=imagenet` fetches
LOG = 'commands.log'  # in TEST_FOLDER: a line per command, with its exit code or 'skipped' and its words


def small(args):
    """Returns the arguments to append to the page's: all are parsed, and the last value of a repeated flag wins.

    Two steps on crops of 33x33 take the same path through the code as 20,000 on 321x321: the data is read, the weights
    are restored, updated, saved and validated. The page's names, files, modes and numbers of classes, devices and
    iterations are kept.
    """
    program, given = os.path.basename(args[0]), {arg.partition('=')[0].lstrip('-') for arg in args}
    if program in ('run.py', 'op_times.py'):
        return ['--quick']
    if program not in ('main.py', 'main_msc.py'):
        return []
    option = ([arg.partition('=')[2] for arg in args if arg.startswith('--option=')] or ['train'])[-1]
    if option == 'train':
        sample = not given & {'flagfile', 'data_list'}  # its flags validate every 50 steps
        return ['--num_steps=2', '--save_interval=1', '--batch_size=4', '--input_height=33', '--input_width=33'] + (
            ['--valid_interval=1', '--valid_num_steps=2'] if sample else [])
    if option == 'test':
        return ['--valid_num_steps=2']
    return ['--test_num_steps=2'] if option == 'predict' and not given & {'image', 'image_dir'} else []


def run(path, words):
    """Lets the process that serves `path` run a command with our input and outputs; returns the exit code."""
    code = 'skipped'
    if not any(skip in words for skip in json.loads(os.environ['TEST_SKIP'])):
        assert words[0] == 'python', words[0] + ' is not run without a mark'
        code = in_fork(path, words[1:])
    with open(os.path.join(os.environ['TEST_FOLDER'], LOG), 'a') as log:
        log.write('%s %s\n' % (code, ' '.join(words).replace('\n', ' ')))
    return 0 if code == 'skipped' else code


def in_fork(path, args):
    """Runs `python ARGS` in a fork, or code such as `python -c` in a new process; returns the exit code."""
    if args[0].startswith('-') and args[0] != '-m':
        return subprocess.call([sys.executable] + args)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        request = json.dumps({'args': args, 'folder': os.getcwd(), 'environment': dict(os.environ)}).encode()
        connection.sendmsg([b'%9d' % len(request)],
                           [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [0, 1, 2]))])
        connection.sendall(request)
        return int(connection.recv(16) or 255)


def receive(connection):
    """Takes over the input and outputs of a request, and returns the request as a dict."""
    files = array.array('i')
    size, found, _, _ = connection.recvmsg(9, socket.CMSG_LEN(3 * files.itemsize))
    files.frombytes(found[0][2])
    for number, name in enumerate(('stdin', 'stdout', 'stderr')):
        os.dup2(files[number], number)
        os.close(files[number])
        setattr(sys, name, os.fdopen(number, 'w' if number else 'r', closefd=False))  # it kept the old file
    with connection.makefile('rb') as request:
        return json.loads(request.read(int(size)).decode())


def serve(path):
    """Waits for requests until the parent is gone; returns each in a fork, and sends the exit code of the fork."""
    parent = os.getppid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that ended forks do not become zombies
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path + '.new')
        server.listen(8)
        os.rename(path + '.new', path)  # the name appears once the socket listens
        server.settimeout(1)
        while os.getppid() == parent:
            try:
                connection = server.accept()[0]
            except socket.timeout:
                continue
            connection.setblocking(True)
            if os.fork():
                connection.close()
                continue
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            request = receive(connection)
            program = os.fork()
            if not program:
                return request
            status = os.waitpid(program, 0)[1]
            connection.sendall(b'%d' % (os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)))
            os._exit(0)
    sys.exit()


def narrow(folder, args):
    """Makes every ResNet of the repo in `folder` small, and fetches `imagenet` from IMAGENET in this folder."""
    sys.path[0] = folder
    from utils.net.blocks import BLOCKS, resnet_blocks
    BLOCKS.update((name, resnet_blocks((0, 0, 1, 1), depth=16)) for name in BLOCKS)  # narrow_main.UNITS
    if '--pretrain_file=imagenet' in args:
        from utils.weights import keras_weights
        path = os.path.join(folder, IMAGENET)
        with open(path, 'rb') as file:
            md5 = hashlib.md5(file.read()).hexdigest()
        keras_weights.published = lambda encoder_name: (IMAGENET, 'file://' + path, md5)


def main():
    what, path = sys.argv[1:3]
    if what == 'run':
        return run(path, sys.argv[3:])
    sys.modules['keras'] = None  # as in runtime.lean_import
    import tensorflow  # noqa: F401
    del sys.modules['keras']
    gc.freeze()  # so that forks neither copy nor search these objects
    request = serve(path)
    os.chdir(request['folder'])
    os.environ.clear()
    os.environ.update(request['environment'])
    args = request['args'] + small(request['args'])
    root = os.environ['TEST_FOLDER']
    narrow(root, args)
    import multiprocessing.spawn  # noqa: F401  it keeps the true Python for the processes of --crf
    sys.executable = os.path.join(root, 'bin', 'python')  # for those of benchmarks/run.py
    if args[0] == '-m':
        sys.argv, sys.path[0] = args[1:], os.getcwd()
        runpy.run_module(args[1], run_name='__main__', alter_sys=True)
    else:
        sys.argv, sys.path[0] = args, os.path.dirname(os.path.abspath(args[0]))
        sys.path[1:1] = filter(None, os.environ.get('PYTHONPATH', '').split(os.pathsep))  # run.py's for measure.py
        runpy.run_path(args[0], run_name='__main__')
    return 0


if __name__ == '__main__':
    sys.exit(main())

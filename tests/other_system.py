"""Hides what Windows or macOS lack: python tests/other_system.py SCRIPT FLAGS, or hide() in a program.

Parts of the standard library that are already imported keep what they need from Linux.
"""

import builtins
import errno
import io
import os
import runpy
import signal
import sys

MODULES = ('resource', 'fcntl', 'termios', 'tty', 'pty', 'pwd', 'grp', 'syslog')
OS = ('pread', 'preadv', 'pwrite', 'pwritev', 'sched_getaffinity', 'sched_setaffinity', 'sched_yield', 'set_blocking',
      'get_blocking', 'fchmod', 'fchown', 'chown', 'lchown', 'fdatasync', 'sync', 'posix_fallocate', 'posix_fadvise',
      'sendfile', 'statvfs', 'fstatvfs', 'mkfifo', 'mknod', 'fork', 'forkpty', 'killpg', 'getpgid', 'setsid', 'nice',
      'getuid', 'geteuid', 'getgid', 'getegid', 'getloadavg', 'uname', 'sysconf', 'fwalk', 'memfd_create', 'O_NOFOLLOW',
      'O_NONBLOCK', 'O_CLOEXEC', 'O_DIRECTORY', 'O_DIRECT', 'O_SYNC', 'O_DSYNC', 'O_NOATIME', 'O_PATH', 'O_TMPFILE')
SIGNALS = ('pthread_sigmask', 'pthread_kill', 'sigpending', 'sigwait', 'sigwaitinfo', 'sigtimedwait', 'siginterrupt',
           'setitimer', 'getitimer', 'alarm', 'pause', 'SIG_BLOCK', 'SIG_UNBLOCK', 'SIG_SETMASK', 'SIGALRM', 'SIGCHLD',
           'SIGHUP', 'SIGPIPE', 'SIGQUIT', 'SIGUSR1', 'SIGUSR2', 'SIGXFSZ')
BINARY = 0x8000  # Windows' O_BINARY
WRITING = os.O_WRONLY | os.O_RDWR


def hide():
    """Hides the names above, /proc and /sys, and makes files behave as on Windows, for the rest of this process."""
    import fcntl
    import shutil

    import numpy  # noqa: F401  needs os.uname on Linux
    import psutil  # its import needs `resource`, which is hidden below

    shutil._use_fd_functions = False  # those functions open folders, which Windows cannot
    for name in ('RLIMIT_AS', 'RLIM_INFINITY'):
        delattr(psutil, name)
    del psutil.Process.rlimit, psutil.Process.cpu_affinity
    for module, names in ((os, OS), (signal, SIGNALS)):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    for name in MODULES:
        sys.modules[name] = None  # makes its import fail

    text = set()  # file descriptors that are open for writing in text mode
    system = {name: getattr(os, name) for name in ('open', 'write', 'close', 'fsync', 'rename')}

    def refused(number, path):
        raise OSError(number, os.strerror(number), path)

    def open_descriptor(path, flags, mode=0o777, **options):
        if os.path.isdir(path):
            refused(errno.EACCES, path)
        file = system['open'](path, flags & ~BINARY, mode, **options)
        (text.discard if flags & BINARY or not flags & WRITING else text.add)(file)
        return file

    def write(file, data):
        if file in text:  # Windows returns the number of bytes before line ends are replaced
            return len(data) if system['write'](file, bytes(data).replace(b'\n', b'\r\n')) else 0
        return system['write'](file, data)

    def close(file):
        text.discard(file)
        system['close'](file)

    def fsync(file):
        if not fcntl.fcntl(file, fcntl.F_GETFL) & WRITING:
            refused(errno.EBADF, None)
        system['fsync'](file)

    def rename(old, new, **options):
        if os.path.lexists(new):
            refused(errno.EEXIST, new)
        system['rename'](old, new, **options)

    def symlink(old, new, *args, **options):
        refused(errno.EPERM, new)  # as on Windows without a privilege that few users have

    def open_file(file, mode='r', buffering=-1, encoding=None, errors=None, newline=None, *args, **options):
        path = os.fsdecode(file) if isinstance(file, (str, bytes, os.PathLike)) else ''
        if path.startswith(('/proc/', '/sys/')) and sys._getframe(1).f_globals['__name__'].split('.')[0] != 'psutil':
            refused(errno.ENOENT, path)
        if 'b' not in mode and not set(mode).isdisjoint('wax+') and newline is None:
            newline = '\r\n'
        return system_open(file, mode, buffering, encoding, errors, newline, *args, **options)

    system_open = builtins.open
    builtins.open = io.open = open_file
    os.O_BINARY = BINARY
    os.open, os.write, os.close, os.fsync, os.rename, os.symlink = open_descriptor, write, close, fsync, rename, symlink


if __name__ in ('__main__', '__mp_main__'):  # the latter in processes that such a program starts
    hide()
if __name__ == '__main__':
    sys.argv.pop(0)
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    runpy.run_path(sys.argv[0], run_name='__main__')

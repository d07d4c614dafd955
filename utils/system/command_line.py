"""The command line: flags parsed, and a mistake turned into one sentence and an exit code."""

import sys

from absl import app, flags

from utils.system.errors import UserError


def own_flags():
    """Sorted names of the flags that the project's own modules define."""
    by_module = flags.FLAGS.flags_by_module_dict()
    return sorted(flag.name for module, members in by_module.items()
                  if not module.startswith(('absl', 'tensorflow')) for flag in members)


def parse_flags(argv):
    """Parses argv (program name first) into absl's FLAGS.

    Raises UserError for an unknown flag (with the valid ones), a bad value, a missing flagfile or a stray word.
    """
    try:
        rest = flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        raise UserError('%s. Valid flags: %s.' % (
            str(error).rstrip('.'), ' '.join('--' + name for name in own_flags())))
    except flags.Error as error:
        raise UserError(str(error).replace('\n', ' '))
    if len(rest) > 1:
        raise UserError("unexpected argument '%s': flags are written --name=value." % rest[1])


def run(main, argv=None, default_args=lambda args: []):
    """Parses the command line, calls main() and returns the exit code.

    Args:
      main: a function without arguments that reads absl's FLAGS.
      argv: the command line, program name first; sys.argv if None.
      default_args: a function from the user's arguments to those put before them.

    Returns:
      0; 1 after a UserError or an operating system's error on a named file, told in one sentence on stderr;
      130 after Ctrl-C.
    """
    argv = sys.argv if argv is None else argv
    app.define_help_flags()
    try:
        parse_flags(argv[:1] + default_args(argv[1:]) + argv[1:])
        main()
        return 0
    except UserError as error:
        message = str(error)
    except KeyboardInterrupt:
        print('\ninterrupted', file=sys.stderr)
        return 130
    except OSError as error:
        message = ': '.join(str(part) for part in (error.filename, error.strerror or error) if part) + '.'
    print('error: ' + message, file=sys.stderr)
    return 1

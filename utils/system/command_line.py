"""The command line: defines and parses flags, finds files, and reports the user's mistakes with an exit code."""

import collections
import dataclasses
import difflib
import math
import os
import re
import select
import sys

from absl import app, flags

from utils.system.errors import UserError, quoted, reason, some
from utils.system.interrupts import Interrupted

flags.disclaim_key_flags()  # a flag belongs to the module that calls DEFINE_path, DEFINE_number and so on, not to this

REPO = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
OUR_FLAGFILES = os.path.join(REPO, 'dataset')
PICTURES = ('.avif', '.bmp', '.dib', '.gif', '.heic', '.heif', '.jfif', '.jp2', '.jpe', '.jpeg', '.jpg', '.pbm',
            '.pgm', '.png', '.pnm', '.ppm', '.tga', '.tif', '.tiff', '.webp')
NOT_A_LIST = 'this is an image, not a list: predict images with --image, or write their paths to a text file'
CLOSED = 141  # exit code if stdout or stderr has been closed by its reader, as after SIGPIPE
LONGEST_NAME = 100  # characters of the name of a flag
MOST_UNREAD = 130  # characters of the names of unread flags in a message
MOST_SCALES = 16
MOST_BANDS = 65535
NO_THREAD = "can't start new thread"  # the message of the RuntimeError that Python raises
MOST_WHOLE = 2 ** 31 - 1  # TensorFlow's int32
MOST_NUMBER = 3.4e38  # TensorFlow's float32
NOTHING, RESULT, NETWORK = 'nothing', 'the result', 'the network'  # values of FlagRecord.decides
THE_DEFAULT = object()
RECORDS = collections.OrderedDict()  # {name: FlagRecord} in the order of definition
_LINE = re.compile(r'(--?\w+)(?:\s*=\s*|\s+)(.*)$')  # of a flag file: --name=value, or --name value
_topics = []  # titles in the order of definition; the next flag gets the last one


@dataclasses.dataclass(frozen=True)
class FlagRecord:
    """The properties of a flag of main.py."""

    name: str
    default: object     # the default in main.py; main_msc.py changes some defaults
    help: str
    bounds: str         # the valid values, in words
    topic: str          # title of the group of flags in which it is listed
    options: tuple      # values of --option for which the flag has an effect
    decides: str        # NOTHING, the RESULT of training, or the NETWORK: then its weights always need this value
    before: object      # the value that stands for the behaviour of earlier versions, which did not have the flag
    needs: str = ''     # condition for the flag to have an effect: 'flag' (is on), 'flag=value' or 'flag=one|other'
    counterpart: str = ''         # the flag that does the same for other options
    excludes: tuple = ()          # flags that the command line must not give if this flag has a value
    from_training: bool = False   # whether test, predict and export use the training's value if the flag is not given,
    #                               as they do for every flag whose `decides` is NETWORK
    same_network: tuple = ()      # if decides is NETWORK: values whose networks can exchange weights
    is_path: bool = False
    content_counts: bool = False  # for a path: whether two values are equal only if the files have the same contents


def file_name(text):
    """Returns text as a file name that Python can use even if the locale lacks its characters (LC_ALL=C)."""
    try:
        os.fsencode(text)
        return text
    except UnicodeEncodeError:
        return os.fsdecode(text.encode('utf-8', 'surrogateescape'))


class PathParser(flags.ArgumentParser):
    """Parses a path and expands ~ and ~user.

    A path must not contain NUL. It must not be empty unless it is `optional`, and it must be UTF-8 if it is `written`.
    An `output` path is not looked up in the repo.
    """

    def __init__(self, optional, output, written=False):
        super(PathParser, self).__init__()
        self.optional, self.output, self.written = optional, output, written

    def parse(self, argument):
        if '\0' in argument:
            raise ValueError('a path cannot contain a NUL character')
        if not argument and not self.optional:
            raise ValueError('give a path')
        argument = file_name(argument)
        if self.written and argument != argument.encode('utf-8', 'replace').decode():  # surrogates become '?'
            raise ValueError('TensorFlow can only write files whose names are UTF-8')
        return os.path.expanduser(argument)


class FiniteParser(flags.FloatParser):
    """Parses a number that is finite in float32."""

    def convert(self, argument):
        value = super(FiniteParser, self).convert(argument)
        if not math.isfinite(value) or abs(value) > MOST_NUMBER:
            raise ValueError('it is not a finite number')
        return value


class NumbersParser(flags.ArgumentParser):
    """Parses comma-separated numbers into a list."""

    def __init__(self, convert, accepts, message):
        """Creates the parser.

        Args:
          convert: float or int.
          accepts: a function that returns whether a list of numbers is valid; it gets [] if a word is not a number.
          message: the error message for an invalid list.
        """
        super(NumbersParser, self).__init__()
        self._convert, self._accepts, self._message = convert, accepts, message

    def parse(self, argument):
        if isinstance(argument, list):
            return argument
        try:
            numbers = [self._convert(word) for word in argument.split(',')]
        except ValueError:
            numbers = []
        if not self._accepts(numbers):
            raise ValueError(self._message)
        return numbers


class StepParser(flags.IntegerParser):
    """Parses a step, which is an integer or the word 'best'."""

    def convert(self, argument):
        return argument if argument == 'best' else super(StepParser, self).convert(argument)

    def is_outside_bounds(self, value):
        return value != 'best' and super(StepParser, self).is_outside_bounds(value)


class ChoiceParser(flags.EnumParser):
    """Parses one of several words, or what absl gives for --name and --noname, 'true' and 'false'."""

    def __init__(self, choices, alone):
        super(ChoiceParser, self).__init__(choices)
        self._alone = alone

    def parse(self, argument):
        if argument == 'false':
            return None
        return self._alone if argument == 'true' else super(ChoiceParser, self).parse(argument)


def topic(title):
    """Begins a topic: each flag that is defined after this call gets a FlagRecord in RECORDS with this topic.

    The definition of such a flag must give the options that read it and what it decides. In programs that never call
    this, such as convert_voc.py, flags have no records.
    """
    _topics.append(title)


def DEFINE_path(name, default, help, output=False, content_counts=False, **record):
    """Defines a flag whose value is a path.

    ~ and ~user are expanded. If a flag file in the repo's dataset/ gives a path to read (not `output`) that does not
    exist in the working folder, it is looked up in the repo. An empty value is accepted if the default is empty.

    Args:
      name, default, help: as in absl.flags.DEFINE_string.
      output: whether the path is written to.
      content_counts: whether two runs have equal settings only if the contents of the file are equal.
      **record: additional fields of the FlagRecord, as for all DEFINE_ functions.
    """
    flags.DEFINE(PathParser(optional=not default, output=output, written=output), name, default, help)
    _record(name, help, 'a path', is_path=True, content_counts=content_counts, **record)


def DEFINE_paths(name, help, **record):
    """Defines a flag that may be repeated, each time with the path of a file to read; None if it is not given."""
    flags.DEFINE_multi(PathParser(optional=False, output=True), flags.ArgumentSerializer(), name, None, help)
    _record(name, help, 'a path, several times', **record)


def DEFINE_list(name, default, help, **record):
    """Defines a path flag for a list of images; the path of an image is rejected."""
    DEFINE_path(name, default, help, **record)
    flags.register_validator(name, lambda path: not is_picture(path), NOT_A_LIST)


def DEFINE_words(name, help, **record):
    """Defines a flag whose value is a list of comma-separated words; None by default."""
    flags.DEFINE_list(name, None, help)
    _record(name, help, 'comma-separated words', **record)


def DEFINE_choice(name, default, choices, help, alone=None, **record):
    """Defines a flag whose value is one of several words; with `alone`, --name means that word, and --noname None."""
    if alone:
        flags.DEFINE_flag(flags.Flag(ChoiceParser(choices, alone), flags.ArgumentSerializer(), name, default, help,
                                     boolean=True))
    else:
        flags.DEFINE_enum(name, default, choices, help)
    _record(name, help, ', '.join(choices), **record)


def DEFINE_switch(name, default, help, **record):
    """Defines a flag that is on or off."""
    flags.DEFINE_boolean(name, default, help)
    _record(name, help, 'true, false', **record)


def DEFINE_whole(name, default, help, lower_bound=0, upper_bound=MOST_WHOLE, **record):
    """Defines a flag whose value is an integer that fits into int32."""
    flags.DEFINE_integer(name, default, help, lower_bound=lower_bound, upper_bound=upper_bound)
    _record(name, help, _bounds(lower_bound, None if upper_bound == MOST_WHOLE else upper_bound), **record)


def DEFINE_number(name, default, help, lower_bound=0, upper_bound=None, **record):
    """Defines a flag whose value is a finite number."""
    flags.DEFINE(FiniteParser(lower_bound, upper_bound), name, default, help)
    _record(name, help, _bounds(lower_bound, upper_bound), **record)


def DEFINE_step(name, default, help, **record):
    """Defines a flag whose value is a training step or 'best'."""
    flags.DEFINE(StepParser(0, MOST_WHOLE), name, default, help)
    _record(name, help, 'a step or best', **record)


def DEFINE_pair(name, default, help, most=MOST_NUMBER, **record):
    """Defines a flag whose value is a list of two positive numbers, each at most `most`."""
    bound = '' if most == MOST_NUMBER else ' up to %g' % most
    _define_numbers(name, default, help, float, lambda pair: len(pair) == 2 and all(0 < n <= most for n in pair),
                    'give two positive numbers%s, such as 0.5,1.5' % bound)
    _record(name, help, 'two positive numbers' + bound, **record)


def DEFINE_range(name, default, help, **record):
    """Defines a flag whose value is a list of two numbers, the lower one first."""
    _define_numbers(name, default, help, float, lambda pair: len(pair) == 2 and -MOST_NUMBER < pair[0] < pair[1] < (
        MOST_NUMBER), 'give two numbers, the lower one first, such as 0,4095')
    _record(name, help, 'two numbers, the lower one first', **record)


def DEFINE_bands(name, default, help, **record):
    """Defines a flag whose value is a list of one or three band numbers, starting from 1."""
    _define_numbers(name, default, help, int, lambda bands: len(bands) in (1, 3) and all(
        1 <= band <= MOST_BANDS for band in bands), 'give one or three band numbers, starting from 1, such as 4,3,2')
    _record(name, help, 'one or three numbers from 1 to %d' % MOST_BANDS, **record)


def DEFINE_scales(name, default, help, most=8, **record):
    """Defines a flag whose value is a list of numbers above 0 and up to `most`."""
    _define_numbers(name, default, help, float,
                    lambda scales: 1 <= len(scales) <= MOST_SCALES and all(0 < scale <= most for scale in scales),
                    'give numbers above 0 and up to %g, at most %d, such as 0.75,1.0' % (most, MOST_SCALES))
    _record(name, help, 'up to %d numbers above 0 and up to %g' % (MOST_SCALES, most), **record)


def DEFINE_fractions(name, default, help, count, **record):
    """Defines a flag whose value is a list of `count` numbers from 0 to 1."""
    _define_numbers(name, default, help, float, lambda numbers: len(numbers) == count and all(
        0 <= number <= 1 for number in numbers), 'give %d numbers from 0 to 1, such as %s' % (
            count, ','.join(['0.2'] * count)))
    _record(name, help, '%d numbers from 0 to 1' % count, **record)


def DEFINE_size(name, default, help, least, most, **record):
    """Defines a flag whose value is a list of a height and a width in pixels, each from `least` to `most`."""
    _define_numbers(name, default, help, int, lambda size: len(size) == 2 and all(least <= n <= most for n in size),
                    'give a height and a width of %d to %d pixels, such as 513,513' % (least, most))
    _record(name, help, 'two integers, %d to %d' % (least, most), **record)


def _define_numbers(name, default, help, *parser):
    flags.DEFINE(NumbersParser(*parser), name, default, help, serializer=flags.ListSerializer(','))


def _bounds(lower, upper):
    """Returns the bounds of a number in words; `upper` is None for no bound."""
    return '%s or more' % lower if upper is None else '%s to %s' % (lower, upper)


def _record(name, help, bounds, options=None, decides=None, before=THE_DEFAULT, **more):
    """Adds the FlagRecord of a defined flag to RECORDS, if the program has topics.

    Raises:
      TypeError: the definition does not say which options read the flag or what it decides.
    """
    if not _topics:
        return
    if not options or decides not in (NOTHING, RESULT, NETWORK):
        raise TypeError("flag '%s': give the values of --option that read it (options=) and whether it decides "
                        'NOTHING, the RESULT of training or the NETWORK (decides=).' % name)
    default = flags.FLAGS[name].default
    RECORDS[name] = FlagRecord(name, default, help, bounds, _topics[-1], tuple(options), decides,
                               default if before is THE_DEFAULT else before, **more)


def is_picture(path):
    """Returns whether the path has the suffix of an image."""
    return os.path.splitext(path)[1].lower() in PICTURES


def is_given(conf, name):
    """Returns whether the user gives a flag, on the command line or in a flag file.

    Args:
      conf: absl's FLAGS; for any other object with the flags as attributes, a flag counts as given if its value is not
        the default.
      name: the flag's name.
    """
    if conf is flags.FLAGS:
        return not flags.FLAGS[name].using_default_value
    return getattr(conf, name, RECORDS[name].default) != RECORDS[name].default


def own_flags():
    """Returns the sorted names of the flags defined by this project's modules."""
    by_module = flags.FLAGS.flags_by_module_dict()
    return sorted(flag.name for module, members in by_module.items()
                  if not module.startswith(('absl', 'tensorflow')) for flag in members)


def flag_name(argument):
    """Returns the name in `--name=value` or `--name`; '' for an argument that is not a flag."""
    return argument.lstrip('-').partition('=')[0] if argument.startswith('-') else ''


def parse_flags(argv):
    """Parses argv (program name first) into absl's FLAGS.

    Raises:
      UserError: a flag is unknown (the message suggests the most similar one), a value is invalid, a flag file is
        missing, or an argument is not a flag. For a mistake in a flag file, the message gives the file and line.
    """
    program, rest = argv[0], argv[1:]
    while True:
        at = next((i for i, argument in enumerate(rest) if flag_name(argument) == 'flagfile'), len(rest))
        _parse([program] + rest[:at])
        if at == len(rest):
            return
        words = rest[at].split('=', 1) if '=' in rest[at] else rest[at:at + 2]
        if len(words) < 2:
            raise UserError('--flagfile needs a file name: give --flagfile=FILE.')
        rest = rest[at + (1 if '=' in rest[at] else 2):]
        _parse_flagfile(program, words[1], [])


def _parse(argv):
    """Parses arguments, none of which is --flagfile; raises UserError for the first mistake."""
    for name in map(flag_name, argv[1:]):
        if len(name) > LONGEST_NAME:  # absl's search for similar names recurses once per character
            raise UserError("unknown flag '--%s': --help lists the flags." % quoted(name))
    try:
        rest = flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        raise UserError("unknown flag '--%s': %s" % (quoted(error.flagname), _nearest(error.flagname)))
    except (flags.Error, ValueError) as error:  # absl raises a plain ValueError for --novisual=1
        raise UserError(_bad_value(str(error)) + '.')
    if len(rest) > 1:
        raise UserError(_stray(rest[1]))


def _bad_value(message):
    """Returns absl's message about an invalid value on one line, with a long value shortened."""
    message = re.sub(r'invalid literal for int\(\) with base .*', 'it is not a whole number', message)
    message = re.sub(r'could not convert string to float.*', 'it is not a number', message)
    match = re.match(r'(?s)flag --(\w+)=(.*): (.*)$', message)
    return 'flag --%s=%s: %s' % (match.group(1), quoted(match.group(2)), reason(match.group(3))) if match else reason(
        message)


def _nearest(name):
    own = own_flags()
    booleans = ['no' + flag for flag in own if flags.FLAGS[flag].boolean]
    near = difflib.get_close_matches(name, own + booleans + ['flagfile', 'help'], 1)
    return 'did you mean --%s?' % near[0] if near else '--help lists the flags.'


def _stray(word):
    """Returns the message about an argument that is not a flag."""
    text = "unexpected argument '%s': " % quoted(word)
    if is_picture(word) and 'test_data_list' in flags.FLAGS:
        return text + 'to predict images, give --option=predict and --image=FILE for each, or --image_dir=FOLDER.'
    if 'option' in flags.FLAGS and word in flags.FLAGS['option'].parser.enum_values:
        return text + 'write --option=%s.' % word
    return text + 'flags are written --name=value.'


def _parse_flagfile(program, name, open_files):
    """Parses a flag file, which has one flag per line; skips blank lines and lines that start with # or //.

    Quotes around a value or a whole line are removed. Name and value may be separated by a space instead of `=`.

    Args:
      program: the name of the program.
      name: the path of the flag file, as given by the user.
      open_files: the real paths of the flag files that include this one, directly or indirectly.

    Raises:
      UserError: as in parse_flags.
    """
    try:
        path = _found(PathParser(optional=False, output=False).parse(name))
    except ValueError as error:
        raise UserError("--flagfile=%s: %s." % (quoted(name), error))
    if os.path.realpath(path) in open_files:
        raise UserError("flag file '%s' includes itself: remove that --flagfile from it." % quoted(path))
    for number, line in enumerate(_lines(path), 1):
        line = line.strip()
        if not line or line.startswith(('#', '//')):
            continue
        try:
            line = _flag_of_line(line)
            if flag_name(line) == 'flagfile':
                _parse_flagfile(program, line.partition('=')[2], open_files + [os.path.realpath(path)])
            else:
                _parse([program, line])
        except UserError as error:
            raise UserError("'%s', line %d: %s" % (quoted(path), number, error))
        if os.path.dirname(os.path.realpath(path)) == OUR_FLAGFILES:
            _find_path(flag_name(line))


def _flag_of_line(line):
    """Returns a line of a flag file as `--name=value` or `--name`.

    Raises:
      UserError: there are several flags on the line.
    """
    match = _LINE.match(_unquoted(line))
    if match is None:
        return _unquoted(line)
    name, value = match.group(1), match.group(2)
    second = next((word for word in value.split()
                   if word.startswith('--') and flag_name(word) in flags.FLAGS), None)
    if second and _unquoted(value) == value:
        raise UserError("'%s' follows another flag: write each flag on a separate line." % quoted(second))
    return '%s=%s' % (name, _unquoted(value))


def _unquoted(text):
    """Returns the text without the quotes around it, if it is quoted as a whole."""
    quote = text[:1]
    whole = len(text) > 1 and quote in ('"', "'") and text.find(quote, 1) == len(text) - 1
    return text[1:-1] if whole else text


def _lines(path):
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise OSError(None, 'not a regular file')
        with open(path, encoding='utf-8-sig') as file:
            return file.read().splitlines()
    except UnicodeDecodeError:
        raise UserError("flag file '%s' cannot be read (not UTF-8 text); save it as UTF-8." % quoted(path))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError("flag file '%s' cannot be read (%s)." % (quoted(path), reason(error)))


def _found(path):
    """Returns the path of a file in the repo's dataset/ if only that file exists; otherwise the path unchanged."""
    ours = os.path.normpath(os.path.join(REPO, path))
    inside = os.path.realpath(ours).startswith(OUR_FLAGFILES + os.sep)
    return ours if inside and not os.path.exists(path) and os.path.exists(ours) else path


def _find_path(name):
    """Replaces the value of a path flag by the path at which the file or folder was found, unless it is an output."""
    if name in flags.FLAGS:
        flag = flags.FLAGS[name]
        if isinstance(flag.parser, PathParser) and not flag.parser.output and flag.value:
            flag.value = _found(flag.value)


def escape_what_cannot_be_shown():
    """Makes stdout and stderr escape characters that their encoding lacks, where Python would raise an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):  # streams in tests do not have it, nor does None, a closed stream
            stream.reconfigure(errors='backslashreplace')


def _drop_closed_streams():
    """Redirects stdout and stderr to the null device if their reader has closed them; returns whether any was closed.

    Otherwise, Python would report an error at exit, when it flushes the buffered text.
    """
    closed = [stream for stream in (sys.stdout, sys.stderr) if stream is not None and _is_closed(stream)]
    for stream in closed:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    return bool(closed)


def _is_closed(stream):
    """Returns whether the reader of a stream has closed it."""
    try:
        stream.flush()
        ends = select.poll()
        ends.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in ends.poll(0))
    except BrokenPipeError:
        return True
    except (AttributeError, OSError, ValueError):  # Windows has no poll; streams in tests have no file descriptor
        return False


def refuse_unread(args):
    """Rejects flags on the command line that have no effect.

    Flags in a flag file are not rejected, as the file may be used with several options.

    Args:
      args: the parsed command line, without the name of the program.

    Raises:
      UserError: --option does not read some of the flags, they need a flag that is not given, or two flags exclude each
        other.
    """
    option = flags.FLAGS.option if RECORDS else None
    given = [record for record in RECORDS.values() if record.name in _named(args) and not _is_left_off(record)]
    unread = [record for record in given if option not in record.options]
    if unread:
        instead = ['--' + record.counterpart for record in unread
                   if record.counterpart and option in RECORDS[record.counterpart].options
                   and record.counterpart not in _named(args)]
        raise UserError('--option=%s does not read %s: %s.' % (
            option, some(['--' + record.name for record in unread], len(unread), MOST_UNREAD),
            _remedy(unread, 'give %s, ' % ' and '.join(instead) if instead else '')))
    idle = [record for record in given if record.needs and not is_met(record.needs, flags.FLAGS)]
    if idle:
        needed = ['--%s needs --%s' % (record.name, record.needs.replace('|', ' or ')) for record in idle]
        raise UserError('%s: %s.' % (some(needed, len(idle), MOST_UNREAD), 'also give that, or leave %s out' % (
            'it' if len(idle) == 1 else 'them')))
    for record in RECORDS.values():
        excluded = [name for name in record.excludes if name in _named(args)]
        if excluded and option in record.options and flags.FLAGS[record.name].value:
            raise UserError('--%s and --%s exclude each other: drop one.' % (record.name, excluded[0]))


def _remedy(records, first):
    """Returns the remedy for flags that have no effect: the clause `first` and the general remedy."""
    return first + ('leave it out or put it into a flag file' if len(records) == 1
                    else 'leave them out or put them into a flag file')


def _named(args):
    """Returns the set of names of the flags in a list of arguments; --novisual adds `visual`."""
    names = set(map(flag_name, args))
    return names | {name[2:] for name in names if name.startswith('no') and name not in flags.FLAGS}


def _is_left_off(record):
    """Returns whether a flag is a switch that is off, both by default and now."""
    flag = flags.FLAGS[record.name]
    return flag.boolean and not flag.value and flag.value == record.default


def is_met(needs, conf):
    """Returns whether the condition of a flag is met.

    Args:
      needs: the field `needs` of a FlagRecord; not empty.
      conf: the flags as attributes.
    """
    name, _, values = needs.partition('=')
    value = getattr(conf, name)
    return str(value) in values.split('|') if values else bool(value)


def run(main, argv=None, default_args=lambda args: []):
    """Parses the command line, calls main() and returns the exit code.

    Args:
      main: a function without arguments that reads absl's FLAGS.
      argv: the command line, program name first; sys.argv if None.
      default_args: a function that gets the list of the user's arguments, after they have been validated, and returns a
        list of arguments to put before them.

    Returns:
      0 for success; 1 for a UserError or OSError, which is reported in one sentence on stderr; 130 after Ctrl-C;
      128 + n if signal n stopped the run after a step; CLOSED if the reader of stdout or stderr has closed it.
    """
    escape_what_cannot_be_shown()
    argv = sys.argv if argv is None else argv
    app.define_help_flags()
    flags.declare_key_flag('flagfile')  # so that --help shows it
    try:
        parse_flags(argv)
        defaults = default_args(argv[1:])
        if defaults:
            not_given = [name for name in RECORDS if flags.FLAGS[name].using_default_value]
            parse_flags(argv[:1] + defaults + argv[1:])
            for name in not_given:  # see is_given
                flags.FLAGS[name].using_default_value = True
        refuse_unread(argv[1:])
        main()
        if sys.stdout is not None:
            sys.stdout.flush()
        return 0
    except UserError as error:
        message = str(error)
    except Interrupted as error:
        return 128 + error.number
    except KeyboardInterrupt:
        print('\ninterrupted', file=sys.stderr)
        return 130
    except SystemExit:  # raised by --help
        if _drop_closed_streams():
            return CLOSED
        raise
    except BrokenPipeError as error:
        if _drop_closed_streams():
            return CLOSED
        message = reason(error) + '.'
    except RuntimeError as error:
        if str(error) != NO_THREAD:
            raise
        message = ('the system cannot start more threads: lower --num_threads, or raise the limits on processes and '
                   'memory (ulimit -u, ulimit -v).')
    except UnicodeEncodeError as error:
        if error.encoding.replace('-', '').lower() == 'utf8':
            raise
        message = "'%s' cannot be encoded in %s." % (quoted(error.object), error.encoding)
    except OSError as error:
        message = ': '.join(part for part in (quoted(error.filename or ''), reason(error)) if part) + '.'
    print('error: ' + message + _other_encoding(message), file=sys.stderr)
    return 1


def _other_encoding(message):
    """Returns a sentence to append if the message may contain a UTF-8 file name but Python uses another encoding.

    Returns '' otherwise.
    """
    encoding = sys.getfilesystemencoding()
    if encoding.replace('-', '').lower() == 'utf8' or message == message.encode('ascii', 'replace').decode() and (
            '\\udc' not in message):
        return ''
    return ' Python decodes file names as %s here; if this one is UTF-8, set PYTHONUTF8=1 or a UTF-8 locale.' % encoding

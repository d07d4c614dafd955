"""The stress suite: `python -m tests.stress` runs the random cases of its parts, which are modules of this folder.

A part has
  run(case): runs one case, which depends only on the Case, and returns RIGHT or REFUSED; any exception is a failure.
and may have
  prepare(folder): called once before the part's cases, in its own process; all cases can read what it writes to the
    folder, as case.shared. If it raises an exception, the part has failed.
  summary(folder): returns a line about all cases, made from what they wrote to case.shared; printed if none failed.
  SECONDS: the time limit of a case, times --patience; a case that takes longer is killed with its whole process
    group, and has failed.
  MEMORY: bytes of RLIMIT_DATA for each of the case's processes.
  CASES: the number of cases; None for as many as the time allows.

Every case runs in a forked process that leads its own process group and has imported main, model, model_msc and thus
TensorFlow, but has not started a session. If the case fails, its output and its folder are kept.
"""

import collections

PARTS = ('hostile', 'own_data', 'properties', 'kill', 'disk', 'load', 'cluster')
RIGHT, REFUSED = 'right', 'refused'  # a correct result; one sentence about a mistake

SECONDS = 60.0
MEMORY = 4 << 30

# number: the case's number, from 0; rng: a numpy RandomState seeded with (--seed, part, number) only; folder: an empty
# folder for the case's files; shared: the folder that prepare wrote; seconds: the time for the whole part, from which
# some cases choose their length.
Case = collections.namedtuple('Case', 'number rng folder shared seconds')

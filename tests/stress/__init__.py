"""The stress suite: parts, each a module of this folder, whose random cases python -m tests.stress runs.

A part has
  run(case): runs one case, which depends on the Case alone, and returns RIGHT or REFUSED; any exception is a failure.
and may have
  prepare(folder): called once before the part's cases, in a process of its own; what it writes to the folder stays for
    all cases, as case.shared. If it raises, the part has failed.
  summary(folder): a line on all cases, printed at their end if none failed, from what they left in case.shared.
  SECONDS: how long a case may take, times --patience; beyond, its whole process group is killed and it has failed.
  MEMORY: bytes of RLIMIT_DATA for each of the case's processes.
  CASES: how many cases there are; None for as many as the time allows.

Every case runs in a forked process, the leader of its own process group, which has imported main, model, model_msc and
so TensorFlow, but has started no session. What it prints is kept with its folder if it fails.
"""

import collections

PARTS = ('hostile', 'own_data', 'properties', 'kill', 'disk', 'load', 'cluster')
RIGHT, REFUSED = 'right', 'refused'  # a right result; one sentence about a mistake

SECONDS = 60.0
MEMORY = 4 << 30

# number: of the case, from 0; rng: a numpy RandomState whose seed is of (--seed, part, number) alone; folder: an empty
# folder for its files; shared: that of prepare; seconds: what the whole part has, for cases of a length that one can
# choose.
Case = collections.namedtuple('Case', 'number rng folder shared seconds')

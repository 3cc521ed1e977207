"""What the command line says: help, what there is to choose, refusals. Imports nothing heavy."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from dcasgd_repro.run.groups import choices, groups

COMMANDS = "train, schedule, check, reproduce, tune, report, diagnose, verify, new, data, bench"
COMMANDS += " or completion"

HELP = """\
dcasgd-repro: asynchronous SGD with delay compensation, simulated on one device

usage: dcasgd-repro COMMAND [...]

  train      run one experiment, or a sweep of them
  schedule   draw a schedule of asynchronous workers: its delays, first rounds and log
  check      whether a rule, yours too, keeps what a rule promises
  reproduce  run what a study (a table, a figure) still lacks
  tune       choose the value of a key, as the learning rate, for each cell of a study
  report     tables and figures from finished runs, beside the paper's
  diagnose   what happened in a run: a figure and a paragraph
  verify     make the start of a kept run again and compare
  new        begin a rule or a study of your own: commented files in the current folder
  data       fetch or verify CIFAR-10, or print its path
  bench      what a simulated worker costs on this device
  completion print what completes these words in bash: eval "$(dcasgd-repro completion bash)"

dcasgd-repro COMMAND --help says more. Start with

  dcasgd-repro data fetch
  dcasgd-repro train +exp=cifar_dc
"""

TRAIN_HELP = """\
usage: dcasgd-repro train [+exp=NAME] [KEY=VALUE ...] [-m]

  +exp=NAME     an experiment: {exp}
  task=         {task}
  model=        {model}
  data=         {data}
  rule=         {rule}
  schedule=     {schedule}
  lr=           {lr}
  engine=       {engine}
  scale=        {scale} (unset: paper with a CUDA device, else laptop;
                imagenet for task imagenet, smoke for the others)
  KEY=VALUE     any key of the config: workers=4 rule.lam0=1 seed=3 epochs=2 device=cpu
                run_dir=DIR augment=false lr.base=0.1 task.weight_decay=1e-4
                rule=my_rule:MyRule, model=my_net:MyNet, data=my_data:Blobs, task=my_task:Line are
                classes of yours, in my_rule.py and so on where you stand, with their own defaults
  -cd DIR       DIR/rule/*.yaml, DIR/exp/*.yaml and so on are there to choose as well
  -m            a sweep: seed=0,1,2 rule=asgd,dcasgd_a runs every combination
  --cfg job     print the composed config and stop (--resolve fills it in)

A run that was stopped goes on when the same command is given again; resume=never starts anew.
Where a file of yours was edited on the way, it is another run: run_dir=DIR resume=edited goes on
with it, and says so in the run's directory.

examples
  dcasgd-repro train +exp=cifar_dc
  dcasgd-repro train +exp=cifar_asgd workers=4 schedule=exponential seed=3
  dcasgd-repro train task=synthetic rule=asgd workers=4 schedule=gamma epochs=2
  dcasgd-repro train -m +exp=cifar_dc seed=0,1,2
"""

SCHEDULE_HELP = """\
usage: dcasgd-repro schedule [schedule=NAME] [workers=M] [KEY=VALUE ...]

  schedule=     {schedule}
  KEY=VALUE     any key of the config: seed=1 schedule.compute.cv=0.5 scale=laptop
                run_dir=DIR (where the log and the figure go);
                schedule=my_law:Pareto is a law of times of yours, in my_law.py where you stand

Prints the table of delays, the log's sha256 and its simulated duration; saves the log, the table
and a figure: a histogram of the delays, and who computes and waits in the first rounds. The number
of pushes is that of the scale (unset: as for train, with paper for cifar10).

examples
  dcasgd-repro schedule schedule=gamma workers=8
  dcasgd-repro schedule schedule=file schedule.path=outputs/schedule/.../schedule.csv.gz workers=8
  dcasgd-repro schedule schedule=from_run schedule.run=RUN workers=32   # like that run's workers
"""

CHECK_HELP = """\
usage: dcasgd-repro check rule=NAME [rule.KEY=VALUE ...] [-m]

  rule=         {rule};
                or rule=my_rule:MyRule, a class of yours in my_rule.py where you stand
  -cd DIR       DIR/rule/*.yaml are there to choose as well
  -m            several: rule=asgd,my_rule:MyRule

Tries the rule on small quadratics with 4 workers, a line for each check: what was demanded, what
was found, ok or fails. It must not write into what it is given, and must give the same answer to
the same arguments; its state must survive a checkpoint after any push, to the bit, and hold no more
vectors than keeps() says; where it says elementwise, a part of a vector must have the whole's bits;
it must stop workers by counts and delays alone; every kind of log must be replayed, and by every
engine alike; zero gradients must leave w finite; the loss of a quadratic must fall. Takes about
3 s. Exits with 1 if a check fails.

examples
  dcasgd-repro check rule=my_rule:MyRule rule.power=2
  dcasgd-repro check rule=dcasgd_a
"""

REPRODUCE_HELP = """\
usage: dcasgd-repro reproduce STUDY [scale=NAME] [seeds=N] [jobs=N] [launcher=NAME] [--dry-run]

  STUDY         {studies};
                the beginning of a name is enough; or a folder of yours with a grid.yaml
  scale=        {scale} (unset: paper with a CUDA device, else laptop;
                imagenet for its studies)
  seeds=        how many: 0, 1, ... (default 3)
  jobs=         runs at a time (default: one a CPU core; with CUDA one; no default elsewhere)
  launcher=     local, slurm (slurm.time=MINUTES slurm.setup='[module load cuda]' ...) or ray
                (ray.num_gpus= ...)
  KEY=VALUE     engine, threads, device, data.root: means, not numbers; a run that was begun keeps
                its own
  -cd DIR       as for train: the cells may name files in DIR, and scale= one of DIR/scale
  --dry-run     print the runs, their state and the time they should take, and stop; a cell that
                train would refuse is named (exit code 2)

Runs what is missing under outputs/cells, goes on with what was stopped, and keeps going when a run
fails. Then keeps the text of the runs, tables and figures under results/STUDY/SCALE. Ctrl-C leaves
everything to go on from. Exits with 1 if a run failed.

examples
  dcasgd-repro reproduce table1 scale=laptop
  dcasgd-repro reproduce fig5 scale=paper seeds=5 jobs=2 --dry-run
"""

TUNE_HELP = """\
usage: dcasgd-repro tune STUDY [scale=NAME] [seeds=N] [jobs=N] [launcher=NAME] [--dry-run]

  STUDY         a study whose grid.yaml has `tune`: {studies}; or a folder of yours
  scale= seeds= jobs= launcher= KEY=VALUE -cd DIR --dry-run
                as for reproduce

Runs every cell with each of its values, on validation images; no test image is looked at. The best
value has the lowest mean, over the seeds, of the mean error of the last ten evaluations; a run that
diverged counts as chance, 90 %. Where the best value of any cell lies at an end of its grid, every
grid is extended by one value: beyond that end, or, where the best value lies inside, beyond its own
better end. So all cells have equally many trials. That is repeated until every best value lies
inside. The choice goes to tuned.yaml in the study's folder, for other studies to read; page and
figure go to results/STUDY/SCALE. Ctrl-C leaves everything to go on from. Exits with 1 if a run
failed; nothing is chosen then.

examples
  dcasgd-repro tune lr_cifar10 scale=laptop --dry-run
  dcasgd-repro tune lr_cifar10 scale=laptop seeds=3
"""

VERIFY_HELP = """Makes the first pushes of a kept run again: in float64, which must agree with
its fingerprint.json within 1e-9 on any machine, and in float32, which must equal the rows of its
metrics.csv up to push 200, digit for digit, where processor, torch and threads are the run's own.
Elsewhere it says what differs, and by how much. Exit code 1 where it is another run."""
NEW_HELP = """A rule or study of your own to begin with, in the current folder: NAME.py, a rule with
comments, and test_NAME.py, which tries it; or experiments/NAME/claim.md and grid.yaml. Nothing is
overwritten."""
DATA_HELP = "CIFAR-10: fetch it, verify it bit for bit, or say where it is looked for."
BENCH_HELP = """Paired timings on this device: what simulating workers costs over plain PyTorch, how
much memory backups take, how fast schedules, updates and engines are. About 25 minutes for
all on two CPU cores; leave the machine alone meanwhile. `cluster`, the pushes per second of a
server on Ray by workers that compute nothing, needs the extra ray and is not part of all."""
COMPLETION_HELP = """Prints what completes commands, studies and choices in a shell. In ~/.bashrc:
eval "$(dcasgd-repro completion bash)" """
DIAGNOSE_HELP = """What happened in a run, from its text files, in a figure and a paragraph: delays,
who computed and waited in the first rounds, how far w_t lay from the backups, how large gradients
and corrections were, and, with a probe.csv, whether corrections pointed the right way."""
REPORT_HELP = """Tables and figures from finished runs. Without arguments, or with the name of a
study, those of results/ beside the paper's; with run directories, or folders of them, one table of
these runs, grouped over seeds."""


def text_of(text: str) -> str:
    """A help text with what there is to choose filled in."""
    return text.format(**{group: ", ".join(choices(group)) for group in groups()})


BASH = """\
_dcasgd_repro() {{
  local line="${{COMP_LINE:0:COMP_POINT}}" words="{words}"
  local cur="${{line##* }}"
  [ "$COMP_CWORD" -le 1 ] && words="{commands}"
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
  # bash breaks words at =, and wants what comes after it.
  [[ "$cur" == *=* && "$COMP_WORDBREAKS" == *=* ]] && COMPREPLY=("${{COMPREPLY[@]#${{cur%=*}}=}}")
}}
complete -F _dcasgd_repro dcasgd-repro
"""


def completion(studies: Sequence[str]) -> str:
    """What bash needs to complete commands, choices of groups, experiments and studies."""
    chosen = [
        f"{'+exp' if group == 'exp' else group}={name}"
        for group in groups()
        for name in choices(group)
    ]
    commands = COMMANDS.replace(" or ", ", ").split(", ")
    words = [*chosen, *studies, "--help", "--dry-run"]
    return BASH.format(commands=" ".join(commands), words=" ".join(words))


def fail(line: str, code: int) -> int:
    """Says what went wrong, in one line on stderr; gives the exit code back."""
    print(f"dcasgd-repro: {' '.join(line.split())}", file=sys.stderr)
    return code


def unread() -> int:
    """The reader of our output has left, as head does: drops the rest; gives the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141

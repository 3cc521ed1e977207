"""The command line: ``dcasgd-repro COMMAND``, see COMMANDS.

The sub-command is taken off ``sys.argv``; for train and schedule Hydra owns the rest. Nothing
heavy is imported before it is needed, so that help answers at once.
"""

from __future__ import annotations

import argparse
import atexit
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from dcasgd_repro import __version__
from dcasgd_repro.errors import BadInput, Failure

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from dcasgd_repro.reproduce import Job
    from dcasgd_repro.study import Study

CONF = Path(__file__).parent / "conf"
if not CONF.exists():  # an editable install: conf/ stands beside the package
    CONF = Path(__file__).parents[1] / "conf"

RESULTS = Path("results")

COMMANDS = "train, schedule, reproduce, tune, report, verify, data or bench"

HELP = """\
dcasgd-repro: asynchronous SGD with delay compensation, simulated on one device

usage: dcasgd-repro COMMAND [...]

  train      run one experiment, or a sweep of them
  schedule   draw a schedule of asynchronous workers: its delays, histogram and log
  reproduce  run a table or figure of the paper, or what it still lacks
  tune       choose a key of a study's cells, as the learning rate, by validation
  report     tables and figures from finished runs, beside the paper's
  verify     make the start of a committed run again and compare
  data       fetch, verify or find CIFAR-10
  bench      what a simulated worker costs on this device

dcasgd-repro COMMAND --help says more. Start with

  dcasgd-repro data fetch
  dcasgd-repro train +exp=cifar_dc
"""

TRAIN_HELP = """\
usage: dcasgd-repro train [+exp=NAME] [KEY=VALUE ...] [-m]

  +exp=NAME     an experiment: {exp}
  task=         {task}
  rule=         {rule}
  schedule=     {schedule}
  scale=        {scale} (unset: paper with a CUDA device, else laptop;
                imagenet for task imagenet, smoke for the others)
  KEY=VALUE     any key of the config: workers=4 rule.lam0=1 seed=3 epochs=2 device=cpu
                run_dir=DIR augment=false lr.base=0.1 task.weight_decay=1e-4
  -m            a sweep: seed=0,1,2 rule=asgd,dcasgd_a runs every combination
  --cfg job     print the composed config and stop (--resolve fills it in)

A run that was stopped goes on when the same command is given again; resume=never starts anew.

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
                run_dir=DIR (where the log and the figure go)

Prints the table of delays, the log's sha256 and its simulated duration; saves the log, the table
and a histogram. The number of pushes is that of the scale (unset: as for train, with paper for
cifar10).

examples
  dcasgd-repro schedule schedule=gamma workers=8
  dcasgd-repro schedule schedule=file schedule.path=outputs/schedule/.../schedule.csv.gz workers=8
"""


REPRODUCE_HELP = """\
usage: dcasgd-repro reproduce STUDY [scale=NAME] [seeds=N] [jobs=N] [launcher=NAME] [--dry-run]

  STUDY         {studies};
                the beginning of a name is enough; or a folder of yours with a grid.yaml
  scale=        {scale} (unset: paper with a CUDA device, else laptop;
                imagenet for its studies)
  seeds=        how many: 0, 1, ... (default 3)
  jobs=         runs at a time (default: one a CPU core; with CUDA one)
  launcher=     local, slurm (slurm.time=MINUTES slurm.partition= ...) or ray (ray.num_gpus= ...)
  KEY=VALUE     engine, threads, device, data.root: means, not numbers; a run that was begun keeps
                its own
  --dry-run     print the runs, their state and the time they should take, and stop

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
  scale= seeds= jobs= launcher= KEY=VALUE --dry-run
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

VERIFY_HELP = """Makes the first pushes of a committed run again and compares the rows of its
metrics.csv, up to push 200."""
DATA_HELP = "CIFAR-10: fetch it, verify it bit for bit, or say where it is looked for."
BENCH_HELP = """Paired timings on this device: what simulating workers costs over plain PyTorch, how
much memory backups take, how fast schedules, updates and engines are. About 25 minutes for
all on two CPU cores; leave the machine alone meanwhile."""
REPORT_HELP = """Tables and figures from finished runs. Without arguments, or with the name of a
study, those of results/ beside the paper's; with run directories, or folders of them, one table of
these runs, grouped over seeds."""


def main() -> None:
    """Runs the command line and exits.

    0 done, 1 a run of a study failed or verify found a difference, 2 bad input, 3 diverged, 4 a
    machine fault, 128 + the signal's number where one stopped it.
    """
    command, *rest = sys.argv[1:] or ["--help"]
    try:
        sys.exit(dispatch(command, rest))
    except BadInput as error:
        sys.exit(told(str(error), 2))
    except Failure as error:
        sys.exit(told(str(error), 4))
    except BrokenPipeError:  # the reader of our output has left, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        sys.exit(told(f"{error.filename}: {error.strerror}", 4))
    except KeyboardInterrupt:
        sys.exit(told("interrupted", 130))


def dispatch(command: str, rest: list[str]) -> int:
    if command in ("-h", "--help", "help"):
        print(HELP, end="")
    elif command == "--version":
        print(__version__)
    elif command in ("train", "schedule"):
        if set(rest) & {"-h", "--help"}:
            text = TRAIN_HELP if command == "train" else SCHEDULE_HELP
            print(text.format(**{group: choices(group) for group in groups()}), end="")
        else:
            return with_hydra(train if command == "train" else schedule, command, rest)
    elif command == "data":
        return data(rest)
    elif command == "report":
        return report(rest)
    elif command in ("reproduce", "tune"):
        return (reproduce if command == "reproduce" else tune)(rest)
    elif command == "verify":
        return verify(rest)
    elif command == "bench":
        return bench(rest)
    else:
        return told(f"{command}: no such command; choose {COMMANDS}", 2)
    return 0


def told(line: str, code: int) -> int:
    """Says what went wrong, in one line; gives the exit code back."""
    print(f"dcasgd-repro: {' '.join(line.split())}", file=sys.stderr)
    return code


def groups() -> list[str]:
    return sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name[0] != "_")


def choices(group: str) -> str:
    return ", ".join(sorted(path.stem for path in (CONF / group).glob("*.yaml")))


OPTIONS = {"-m", "--multirun", "-c", "--cfg", "--resolve", "-p", "--package", "-i", "--info"}
OPTIONS |= {"-cd", "--config-dir", "--hydra-help"}


def with_hydra(
    job: Callable[[DictConfig, Sequence[str]], int], command: str, arguments: list[str]
) -> int:
    """Composes the config from ``arguments`` and runs ``job`` on it, once per point of a sweep.

    Returns the worst exit code. A point that is refused is told, and the sweep goes on.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    for a in arguments:
        if a.startswith("-") and a.partition("=")[0] not in OPTIONS:
            return told(
                f"{a}: no such option; `dcasgd-repro {command} --help` lists what there is", 2
            )
    argv = ["dcasgd-repro", command, *arguments]
    codes = Codes()
    known = all_keys() if any(a[:1] == "+" and a[:5] != "+exp=" for a in arguments) else []

    def once(cfg: DictConfig) -> None:
        codes.append(0)  # composed
        from dcasgd_repro.config import check_complete

        try:
            check_complete(cfg)
            refuse_unread(cfg, arguments, known)
            codes.append(job(cfg, argv))
        except BadInput as error:
            codes.append(told(str(error), 2))
        except Failure as error:
            codes.append(told(str(error), 4))
        except BrokenPipeError:
            raise
        except OSError as error:
            codes.append(told(f"{error.filename}: {error.strerror}", 4))

    # Options first: argparse, behind Hydra, takes the overrides only in one piece.
    overrides = [a for a in arguments if a[:1] != "-" and ("=" in a or a[:1] == "~")]
    options = [a for a in arguments if a not in overrides]
    sys.argv = ["dcasgd-repro", *options, *default_scale(command, arguments), *overrides]
    run = hydra.main("pkg://dcasgd_repro.conf", "config", version_base="1.3")(once)
    try:
        run()
    except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
        if codes.read():  # not about the arguments: a fault of ours, to be seen whole
            raise
        return told(in_plain_words(error, arguments), 2)
    return max(codes.read(), default=0)


class Codes:
    """Exit codes of a sweep's points, in a file: a launcher runs them in processes of its own."""

    def __init__(self) -> None:
        handle, self.path = tempfile.mkstemp(prefix="dcasgd-repro-")
        os.close(handle)
        atexit.register(Path(self.path).unlink, missing_ok=True)

    def append(self, code: int) -> None:
        if Path(self.path).exists():  # on another machine it does not
            with open(self.path, "a") as file:
                file.write(f"{code}\n")

    def read(self) -> list[int]:
        return [int(line) for line in Path(self.path).read_text().split()]


def in_plain_words(error: Exception, arguments: list[str]) -> str:
    """What Hydra refused, as key=value: remedy."""
    import difflib
    import re

    text = " ".join(str(error).split())
    given = {a.lstrip("+~").partition("=")[0]: a.partition("=")[2] for a in arguments}
    group = next((g for g in groups() if f"'{g}/{given.get(g)}'" in text), None)
    if group is None and ("override must be a string" in text or isinstance(error, TypeError)):
        odd = [g for g in groups() if g in given and given[g] not in choices(g).split(", ")]
        group = odd[0] if odd else None
    if group is not None:
        inside = sorted(k for k in all_keys() if k.startswith(f"{group}.") and "_target_" not in k)
        keys = f"; a key inside it is set as {inside[0]}=VALUE" if inside else ""
        return f"{group}={given[group]}: no such {group}, choose {choices(group)}{keys}"
    if "nterpolation" in text:
        for key, value in given.items():
            if "${" in value:
                return f"{key}={value}: this interpolation leads nowhere; give a value"
    if taken := re.search(r"already at '([\w.]+)'", text):
        return f"{taken.group(1)}={given.get(taken.group(1), '')}: this key exists; leave out the +"
    if "exp" in given and "+exp" not in " ".join(arguments):
        return f"exp={given['exp']}: an experiment is added: write +exp={given['exp']}"
    if "override_grammar" in text:
        odd = [a for a in arguments if a.partition("=")[2] and a.partition("=")[2] in text]
        odd += [a for a in arguments if "=" not in a or set("$(){}[]=") & set(a.partition("=")[2])]
        return (
            f"{odd[0] if odd else arguments}: not understood; write KEY=VALUE, odd text in quotes"
        )
    if unknown := re.search(r"Could not (?:override|delete) '([\w.]+)'", text):
        key = unknown.group(1)
        near = difflib.get_close_matches(key, all_keys(), n=3, cutoff=0.5)
        meant = f"did you mean {' or '.join(near)}? " if near else ""
        remedy = f"no such key; {meant}`dcasgd-repro train --cfg job` prints them all"
        return f"{key}={given.get(key, '')}: {remedy}"
    return text


def all_keys() -> list[str]:
    """Every key of the default config, as it is typed."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    def walk(node: object, at: str) -> list[str]:
        if not isinstance(node, dict):
            return [at]
        return [leaf for key, value in node.items() for leaf in walk(value, f"{at}.{key}")]

    with initialize_config_module("dcasgd_repro.conf", version_base="1.3"):
        content = OmegaConf.to_container(compose("config", overrides=["scale=laptop"]))
    return [key[1:] for key in walk(content, "")]


def default_scale(command: str, arguments: list[str]) -> list[str]:
    """The scale to add where none is given; see the help."""
    if any(a.startswith("scale=") for a in arguments):
        return []
    tasks = chosen_tasks(arguments)
    if "imagenet" in tasks and len(tasks) > 1:
        raise BadInput("scale", None, f"choose one; {', '.join(sorted(tasks))} have no common one")
    if tasks != {"cifar10"}:
        return ["scale=imagenet" if tasks == {"imagenet"} else "scale=smoke"]
    if command == "schedule":  # answers without torch, and a longer log begins like a shorter one
        return ["scale=paper"]
    import torch

    return ["scale=paper" if torch.cuda.is_available() else "scale=laptop"]


def chosen_tasks(arguments: list[str]) -> set[str]:
    """The tasks that a command runs: those it names, else its experiments', else the default."""
    if named := [a.partition("=")[2] for a in arguments if a.startswith("task=")]:
        return set(named[-1].split(","))
    tasks = set()
    for name in (n for a in arguments if a.startswith("+exp=") for n in a[5:].split(",")):
        file = CONF / "exp" / f"{name}.yaml"
        lines = file.read_text().splitlines() if file.is_file() else []
        found = [line.partition("override /task:")[2].strip() for line in lines]
        tasks.add(next(filter(None, found), "cifar10"))
    return tasks or {"cifar10"}


def refuse_unread(cfg: DictConfig, arguments: list[str], known: list[str]) -> None:
    """Refuses an added key that nothing reads, and one for a part that this task does not read."""
    from omegaconf import OmegaConf

    from dcasgd_repro.config import task_name

    added = [a.lstrip("+") for a in arguments if a.startswith("+") and not a.startswith("+exp=")]
    for key, _, value in (a.partition("=") for a in added):
        if key.split(".")[0] not in groups() and key not in known:
            raise BadInput(key, value, "no such key, and none can be added here")
    task = OmegaConf.to_yaml(cfg.task, resolve=False)
    for argument in arguments:
        key, _, value = argument.lstrip("+~").partition("=")
        part = key.split(".")[0]
        if (
            part in ("model", "augment", "data", "test_images", "validation")
            and f"${{{part}" not in task
        ):
            raise BadInput(key, value, f"task {task_name(cfg)} reads no {part}; leave it out")


def train(cfg: DictConfig, argv: Sequence[str]) -> int:
    from dcasgd_repro import experiment, report

    if not any(a.startswith("scale=") for a in argv) and cfg.scale in ("paper", "laptop"):
        print(experiment.scale_line(cfg), flush=True)
    path = experiment.run(cfg, argv)
    print(report.one_run(path), flush=True)
    summary = report.Run.read(path).summary
    if summary["status"] == experiment.INTERRUPTED:
        name, pushes = summary["stopped_by"], summary["pushes"]
        again = f"to go on: the same command, or with run_dir={path}"
        sys.exit(told(f"{name} after push {pushes:,}; {again}", 128 + signal.Signals[name]))
    return 3 if summary["status"] == experiment.DIVERGED else 0


def schedule(cfg: DictConfig, argv: Sequence[str]) -> int:
    from dcasgd_repro import report
    from dcasgd_repro.config import length_of, schedule_of

    log = schedule_of(cfg, length_of(cfg).pushes)
    out = Path(cfg.run_dir or f"outputs/schedule/{log.sha256()[:8]}")
    print(report.schedule(log, out))
    return 0


class Parser(argparse.ArgumentParser):
    """argparse, refusing in one line."""

    def error(self, message: str) -> NoReturn:
        sys.exit(told(f"{message}; `{self.prog} --help` says more", 2))


def data(arguments: list[str]) -> int:
    parser = Parser("dcasgd-repro data", description=DATA_HELP)
    parser.add_argument("action", choices=("fetch", "verify", "path"))
    parser.add_argument(
        "root", nargs="?", metavar="data.root=DIR", help="instead of $DCASGD_DATA or the cache"
    )
    given = parser.parse_args(arguments)
    root = given.root
    if root is not None:
        key, _, root = root.partition("=")
        if key != "data.root" or not root:
            raise BadInput(key, root, "the one key of this command is data.root=DIR")

    from dcasgd_repro.data import fetch

    if given.action == "fetch":
        print(f"CIFAR-10 is complete and verified in {fetch.fetch(root)}")
    elif given.action == "path":
        print(fetch.home(root))
    else:
        for name, md5 in fetch.verify(root).items():
            print(f"{md5}  {name}")
        print("all six batches are the official ones")
    return 0


def report(arguments: list[str]) -> int:
    parser = Parser("dcasgd-repro report", description=REPORT_HELP)
    parser.add_argument("runs", nargs="*", metavar="STUDY | RUN",
                        help="a study's name, or run directories and folders of them")  # fmt: skip
    parser.add_argument("--out", type=Path, help="where the table, the figure and the text go")
    given = parser.parse_args(arguments)

    from dcasgd_repro import report as reports

    places = [Path(name) for name in given.runs]
    studies = [place for place in places if (place / "grid.yaml").exists()]
    if places and not studies and all(place.is_dir() for place in places):
        print(reports.comparison(places, given.out))
        return 0
    from dcasgd_repro import results

    if given.out is not None:
        raise BadInput("--out", given.out, "a study's report goes to results/; leave it out")
    print(results.all_of(given.runs, RESULTS))
    return 0


def reproduce(arguments: list[str]) -> int:
    asked = Asked.of("reproduce", arguments)
    if isinstance(asked, int):
        return asked

    from dcasgd_repro import reproduce as reproductions
    from dcasgd_repro import results
    from dcasgd_repro.study import names, study

    chosen, scale = asked.study, asked.scale
    if chosen.tune is not None:
        remedy = f"it has a grid to tune: {chosen.again(scale)}"
        raise BadInput("study", chosen.name, remedy)
    jobs = reproductions.jobs_of(chosen, scale, asked.seeds, asked.extra)
    if asked.dry_run:
        print(asked.plan(jobs))
        return 0
    failed = asked.run(jobs)
    if isinstance(failed, int):
        return failed
    reproductions.keep(jobs, RESULTS / chosen.runs_of / scale / "runs", failed)
    print(results.write(chosen, scale, RESULTS))
    for other in map(study, names()):  # which look at the same runs
        if other.runs_of == chosen.runs_of and other.name != chosen.name:
            results.write(other, scale, RESULTS)
    results.overview(RESULTS)
    return int(bool(failed))


def tune(arguments: list[str]) -> int:
    asked = Asked.of("tune", arguments)
    if isinstance(asked, int):
        return asked

    from dcasgd_repro import reproduce as reproductions
    from dcasgd_repro import results, tune

    chosen, scale = asked.study, asked.scale
    if chosen.tune is None:
        remedy = f"has no `tune` in its grid.yaml; did you mean {chosen.again(scale)}?"
        raise BadInput("study", chosen.name, remedy)
    rounds = tune.rounds(chosen, scale, asked.seeds, asked.extra)
    if asked.dry_run:
        *_, (_, jobs) = rounds  # as far as they have been run
        note = "while a best value lies at an end of its grid, all grids are extended and run again"
        print(f"{asked.plan(jobs)}\n{note}")
        return 0
    first: Sequence[Job] = ()
    for of_round in rounds:
        grid, jobs = of_round
        first = first or jobs
        failed = asked.run(jobs)
        if isinstance(failed, int):
            return failed
    if failed:  # an extension that is not whole is not kept: the page is that of the first grid
        jobs = first
    else:
        print(tune.write(chosen, scale, grid, jobs), end="\n\n")
    reproductions.keep(jobs, RESULTS / chosen.name / scale / "runs", failed)
    print(results.write(chosen, scale, RESULTS))
    results.overview(RESULTS)
    return int(bool(failed))


@dataclass(frozen=True)
class Asked:
    """What the arguments of ``reproduce`` and ``tune`` ask for."""

    command: str
    arguments: Sequence[str]
    study: Study
    scale: str
    seeds: int
    at_a_time: int
    launcher: str
    options: Mapping[str, str]  # of the launcher
    extra: Sequence[str]  # words that say with what means to compute
    dry_run: bool

    @classmethod
    def of(cls, command: str, arguments: list[str]) -> Asked | int:
        """Read from the arguments; an exit code where there is nothing to run. Raises BadInput."""
        from dcasgd_repro.study import names, study

        if not arguments or set(arguments) & {"-h", "--help"}:
            tunes = command == "tune"
            listed = [name for name in names() if not tunes or study(name).tune is not None]
            text = TUNE_HELP if tunes else REPRODUCE_HELP
            print(text.format(studies=", ".join(listed), scale=choices("scale")), end="")
            return 0
        words = [a for a in arguments if "=" in a]
        for a in arguments:
            if a not in words and a.startswith("-") and a != "--dry-run":
                return told(f"{a}: no such option; `dcasgd-repro {command} --help` says more", 2)
        named = [a for a in arguments if a not in words and not a.startswith("-")]
        if len(named) != 1:
            return told(f"study={' '.join(named)}: name one; there are {', '.join(names())}", 2)
        given = dict(word.split("=", 1) for word in words)

        import torch

        chosen, cuda = study(named[0]), torch.cuda.is_available()
        own = chosen.paper_scale
        scale = given.pop("scale", own if cuda or own != "paper" else "laptop")
        if scale not in choices("scale").split(", "):
            raise BadInput("scale", scale, f"no such scale, choose {choices('scale')}")
        seeds = whole("seeds", given.pop("seeds", "3"))
        at_a_time = whole("jobs", given.pop("jobs", str(1 if cuda else os.cpu_count() or 1)))
        name = given.pop("launcher", "local")
        begins = f"{name}."
        options = {k.partition(".")[2]: given.pop(k) for k in list(given) if k.startswith(begins)}
        for key, value in given.items():
            if (other := key.partition(".")[0]) in ("slurm", "ray"):
                remedy = f"goes with launcher={other}, and launcher={name} is chosen"
                raise BadInput(key, value, remedy)
        extra = [f"{key}={value}" for key, value in given.items()]
        if name == "local" and at_a_time > 1 and "threads" not in given and not cuda:
            extra.append("threads=1")  # side by side, each is fastest on a core of its own
        dry_run = "--dry-run" in arguments
        means = (seeds, at_a_time, name, options, extra, dry_run)
        return cls(command, arguments, chosen, scale, *means)

    def plan(self, jobs: Sequence[Job]) -> str:
        """The runs, their state, and the time they should take."""
        from dcasgd_repro import reproduce as reproductions

        rate = lambda: reproductions.seconds_per_push(self.scale)  # noqa: E731
        head = f"{self.study.name}, scale={self.scale}"
        return f"{head}\n{reproductions.plan(jobs, self.at_a_time, rate)}"

    def run(self, jobs: Sequence[Job]) -> list[Job] | int:
        """Runs what has not ended; returns what failed, each told, or an exit code if stopped."""
        from dcasgd_repro import launchers
        from dcasgd_repro import reproduce as reproductions
        from dcasgd_repro.display import display

        launcher = launchers.launcher(self.launcher, self.options)
        words = {word.lower() for word in self.extra}
        left = [job for job in reproductions.unique(jobs) if not job.ended]
        if other := [job for job in left if not words <= {word.lower() for word in job.command}]:
            begun = ", ".join(job.name for job in other)
            told(f"begun with other means than {' '.join(self.extra)}, which they keep: {begun}", 0)
        try:
            shown = display(jobs, f"{self.study.name}, scale={self.scale}")
            failed = reproductions.run(jobs, self.at_a_time, launcher, shown)
        except KeyboardInterrupt:
            again = " ".join([f"dcasgd-repro {self.command}", *self.arguments])
            return told(f"interrupted; every run goes on from its checkpoint with: {again}", 130)
        for job in failed:
            print(f"failed    {job.name}: {job.last_line()}", file=sys.stderr)
        return failed


def verify(arguments: list[str]) -> int:
    parser = Parser("dcasgd-repro verify", description=VERIFY_HELP)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a kept run's folder")
    given = parser.parse_args(arguments)

    from dcasgd_repro.verify import verify as verified

    results = [verified(path) for path in given.runs]
    for line, _ in results:
        print(line)
    return int(not all(equal for _, equal in results))


def whole(key: str, text: str) -> int:
    """A count >= 1 as it was typed."""
    if not text.isdecimal() or int(text) < 1:
        raise BadInput(key, text, "give a whole number >= 1")
    return int(text)


def bench(arguments: list[str]) -> int:
    parts = ("simulate", "memory", "schedule", "update", "waves", "all")
    parser = Parser("dcasgd-repro bench", description=BENCH_HELP)
    parser.add_argument("parts", nargs="*", choices=parts, default="all", metavar="PART",
                        help=f"one or more of {', '.join(parts)} (default: all)")  # fmt: skip
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--out", type=Path, default=Path("results/bench"), help="folder of the JSON"
    )
    given = parser.parse_args(arguments)

    from omegaconf import OmegaConf

    from dcasgd_repro.bench import page
    from dcasgd_repro.device import set_device

    device = set_device(
        OmegaConf.create({"threads": None, "device": given.device, "deterministic": "auto"})
    )
    chosen = list(page.PARTS) if "all" in given.parts else list(dict.fromkeys(given.parts))
    try:
        file = page.run(chosen, device, given.out, ["dcasgd-repro", "bench", *arguments])
    except KeyboardInterrupt:
        return told(f"interrupted; the parts that were done are kept in {given.out}", 130)
    print(f"\nkept in {file}; all of them in {page.write(given.out)}")
    return 0


if __name__ == "__main__":
    main()

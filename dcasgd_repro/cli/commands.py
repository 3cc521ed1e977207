"""The commands of ``dcasgd-repro``: a thin door, each imports what it needs when it is called."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from dcasgd_repro import __version__
from dcasgd_repro.cli import help as texts
from dcasgd_repro.cli.help import fail, unread
from dcasgd_repro.errors import BadInput, Failure
from dcasgd_repro.run.groups import choices

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from dcasgd_repro.cli.hydra import Done, Job

RESULTS = Path("results")


def main() -> None:
    """Runs the command line and exits.

    0 done, 1 a run of a study failed, verify found a difference or a rule fails a check, 2 bad
    input, 3 diverged, 4 a machine fault, 128 + the signal's number where one stopped it.
    """
    command, *rest = sys.argv[1:] or ["--help"]
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed before we came; no file is to take its number
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    if "" not in sys.path:
        sys.path.append("")  # a rule of one's own is imported from where one stands
    try:
        sys.exit(dispatch(command, rest))
    except BadInput as error:
        sys.exit(fail(str(error), 2))
    except Failure as error:
        sys.exit(fail(str(error), 4))
    except BrokenPipeError:
        sys.exit(unread())
    except OSError as error:
        sys.exit(fail(f"{error.filename}: {error.strerror}", 4))
    except KeyboardInterrupt:
        sys.exit(fail("interrupted", 130))


def dispatch(command: str, rest: list[str]) -> int:
    """Runs one command; returns its exit code."""
    if command in ("-h", "--help", "help"):
        print(texts.HELP, end="")
        return 0
    if command == "--version":
        print(__version__)
        return 0
    if command in HYDRAS:
        job, text = HYDRAS[command]
        if set(rest) & {"-h", "--help"}:
            print(texts.text_of(text), end="")
            return 0
        from dcasgd_repro.cli.hydra import with_hydra

        return with_hydra(job, command, rest)
    if command in OWN:
        return OWN[command](rest)
    return fail(f"{command}: no such command; choose {texts.COMMANDS}", 2)


def train(cfg: DictConfig, argv: Sequence[str]) -> Done:
    from dcasgd_repro.cli.hydra import Done, typed
    from dcasgd_repro.run.experiment import run
    from dcasgd_repro.run.plan import plan_of
    from dcasgd_repro.run.read import DIVERGED, INTERRUPTED, summary_of
    from dcasgd_repro.study.runs import one_run

    plan = plan_of(cfg, *typed(cfg))
    if not any(a.startswith("scale=") for a in argv) and cfg.scale in ("paper", "laptop"):
        print(scale_line(cfg), flush=True)
    path = run(plan, argv)
    print(one_run(path), flush=True)
    summary = summary_of(path)
    if summary["status"] == INTERRUPTED:
        name, pushes = summary["stopped_by"], summary["pushes"]
        again = f"to go on: the same command, or with run_dir={path}"
        sys.exit(fail(f"{name} after push {pushes:,}; {again}", 128 + signal.Signals[name]))
    error = summary["test_error_final"]
    words = f"{summary['status']:9} " + ("" if error is None else f"{error:.2%}  ") + f"{path}"
    return Done(3 if summary["status"] == DIVERGED else 0, words)


def scale_line(cfg: DictConfig) -> str:
    """Says which scale was chosen for want of one, and what the paper's run would take here."""
    from dcasgd_repro.run.device import seconds_per_gradient, set_device

    device = set_device(cfg.device, cfg.threads, cfg.deterministic)
    seconds = seconds_per_gradient(device)
    hours = seconds * 160 * 50_000 / 128 / 3600
    found = "a CUDA device" if device.type == "cuda" else "no CUDA device"
    return (
        f"no scale given and {found}: scale={cfg.scale}. The paper's run (scale=paper) would take "
        f"about {hours:.1f} h here ({1000 * seconds:.0f} ms a ResNet-20 gradient, just measured)"
    )


def schedule(cfg: DictConfig, argv: Sequence[str]) -> Done:
    from dcasgd_repro.cli.hydra import Done, typed
    from dcasgd_repro.run.plan import build, length_of, log_of, rule_of
    from dcasgd_repro.schedule import FromRun, repeats
    from dcasgd_repro.study import runs

    log = log_of(cfg, length_of(cfg).pushes, *typed(cfg))
    out = Path(cfg.run_dir or f"outputs/schedule/{log.sha256()[:8]}")
    found: list[str] = []
    if cfg.reactive:
        from dcasgd_repro.reactive import answers

        found = answers(rule_of(cfg), log)
    made = build(cfg, "schedule")
    print(runs.schedule(log, out, found, made if isinstance(made, FromRun) else None))
    if said := repeats(made, log.pushes):
        print(f"note      {said}")
    delays = log.delays()
    return Done(0, f"delay {delays.mean():.2f} ± {delays.std():.2f}, at most {delays.max()}  {out}")


def check(cfg: DictConfig, argv: Sequence[str]) -> Done:
    from dcasgd_repro.cli.hydra import Done
    from dcasgd_repro.run.battery import battery
    from dcasgd_repro.run.check import check_is_rule
    from dcasgd_repro.run.plan import build

    for word in argv[2:]:
        key, _, value = word.partition("=")
        if "=" in word and word[0] != "-" and key.lstrip("+~").split(".")[0] != "rule":
            raise BadInput(key, value, "check reads rule= and its keys; leave it out")
    if not any(word.startswith(("rule=", "rule._target_=")) for word in argv):
        raise BadInput("rule", None, "which one? As in rule=dcasgd_a or rule=my_rule:MyRule")
    rule = build(cfg, "rule")
    check_is_rule(rule)
    print(f"{rule}")
    failed = []
    for line in battery(rule):
        print(line, flush=True)
        failed += [] if line.ok else [line.name]
    return Done(int(bool(failed)), f"fails {', '.join(failed)}" if failed else "ok")


class Parser(argparse.ArgumentParser):
    """argparse, refusing in one line."""

    def error(self, message: str) -> NoReturn:
        sys.exit(fail(f"{message}; `{self.prog} --help` says more", 2))


def data(arguments: list[str]) -> int:
    parser = Parser("dcasgd-repro data", description=texts.DATA_HELP)
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
    parser = Parser("dcasgd-repro report", description=texts.REPORT_HELP)
    parser.add_argument("runs", nargs="*", metavar="STUDY | RUN",
                        help="a study's name, or run directories and folders of them")  # fmt: skip
    parser.add_argument("--out", type=Path, help="where the table, the figure and the text go")
    given = parser.parse_args(arguments)

    from dcasgd_repro.run.identity import CELLS
    from dcasgd_repro.study import pages, runs
    from dcasgd_repro.study.reproduce import keeping

    places = [Path(name) for name in given.runs]
    studies = [place for place in places if (place / "grid.yaml").exists()]
    # Not while a study keeps its runs: half of one would be read. Without outputs/ there is none.
    alone = keeping() if os.access(CELLS.parent, os.W_OK) else contextlib.nullcontext()
    if places and not studies and all(place.is_dir() for place in places):
        with alone:
            print(runs.comparison(places, given.out))
        return 0
    if given.out is not None:
        raise BadInput("--out", given.out, "a study's report goes to results/; leave it out")
    with alone:
        print(pages.all_of(given.runs, RESULTS))
    return 0


def diagnose(arguments: list[str]) -> int:
    parser = Parser("dcasgd-repro diagnose", description=texts.DIAGNOSE_HELP)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("--out", type=Path, default=Path("outputs/diagnose"),
                        help="where the figures go (default: outputs/diagnose)")  # fmt: skip
    given = parser.parse_args(arguments)

    from dcasgd_repro.study.diagnose import diagnose as diagnosed

    print(diagnosed(given.runs, given.out))
    return 0


def reproduce(arguments: list[str]) -> int:
    from dcasgd_repro.study.request import request

    asked = request("reproduce", arguments, scales)
    if asked is None:
        return study_help(texts.REPRODUCE_HELP)
    return asked.reproduce(RESULTS)


def tune(arguments: list[str]) -> int:
    from dcasgd_repro.study.request import request

    asked = request("tune", arguments, scales)
    if asked is None:
        return study_help(texts.TUNE_HELP, tuned=True)
    return asked.tune(RESULTS)


def scales(folders: Sequence[Path]) -> list[str]:
    """The names of our scales, and of those in folders of one's own."""
    return choices("scale", folders)


def study_help(text: str, tuned: bool = False) -> int:
    """The help of a command about studies, which it lists."""
    from dcasgd_repro.study.grid import names, study

    listed = [name for name in names() if not tuned or study(name).tune is not None]
    print(text.format(studies=", ".join(listed), scale=", ".join(choices("scale"))), end="")
    return 0


def new(arguments: list[str]) -> int:
    parser = Parser("dcasgd-repro new", description=texts.NEW_HELP)
    parser.add_argument("kind", choices=("rule", "study"))
    parser.add_argument("name", metavar="NAME", help="as in my_rule")
    given = parser.parse_args(arguments)

    from dcasgd_repro.cli import new as skeletons

    write = {"rule": skeletons.rule, "study": skeletons.study}[given.kind]
    print(write(given.name))
    return 0


def verify(arguments: list[str]) -> int:
    parser = Parser("dcasgd-repro verify", description=texts.VERIFY_HELP)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a kept run's folder")
    parser.add_argument("--fingerprint", action="store_true",
                        help="write the fingerprint of a run that has none, where this machine "
                        "makes its first row again, digit for digit")  # fmt: skip
    given = parser.parse_args(arguments)

    from dcasgd_repro.run import verify as verifying

    code = 0
    for path in given.runs:
        if given.fingerprint:
            print(verifying.mark(path), flush=True)
            continue
        try:
            line, equal = verifying.verify(path)
        except BadInput as error:
            if str(path) in str(error):
                raise
            raise BadInput("run", path, f"cannot be made again: {error}") from None
        print(line, flush=True)
        code = code or int(not equal)
    return code


def bench(arguments: list[str]) -> int:
    parts = ("simulate", "memory", "schedule", "update", "waves", "cluster", "all")
    parser = Parser("dcasgd-repro bench", description=texts.BENCH_HELP)
    parser.add_argument("parts", nargs="*", choices=parts, default="all", metavar="PART",
                        help=f"one or more of {', '.join(parts)} (default: all)")  # fmt: skip
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--out", type=Path, default=Path("results/bench"), help="folder of the JSON"
    )
    given = parser.parse_args(arguments)

    from dcasgd_repro.bench import page
    from dcasgd_repro.run.device import set_device

    device = set_device(given.device)
    chosen = list(dict.fromkeys(given.parts))
    if "all" in given.parts:
        chosen = [name for name in page.PARTS if name != "cluster" or name in given.parts]
    if "cluster" in chosen:
        from dcasgd_repro.cluster.ray import Ray

        Ray()  # which refuses where there is no Ray, before anything is measured
    try:
        file = page.run(chosen, device, given.out, ["dcasgd-repro", "bench", *arguments])
    except KeyboardInterrupt:
        return fail(f"interrupted; the parts that were done are kept in {given.out}", 130)
    print(f"\nkept in {file}; all of them in {page.write(given.out)}")
    return 0


def completion(arguments: list[str]) -> int:
    parser = Parser("dcasgd-repro completion", description=texts.COMPLETION_HELP)
    parser.add_argument("shell", choices=("bash",), help="the one shell it is there for")
    parser.parse_args(arguments)

    from dcasgd_repro.study.grid import names

    print(texts.completion(names()), end="")
    return 0


HYDRAS: dict[str, tuple[Job, str]] = {
    "train": (train, texts.TRAIN_HELP),
    "schedule": (schedule, texts.SCHEDULE_HELP),
    "check": (check, texts.CHECK_HELP),
}
OWN: dict[str, Callable[[list[str]], int]] = {
    "reproduce": reproduce,
    "tune": tune,
    "report": report,
    "diagnose": diagnose,
    "verify": verify,
    "new": new,
    "data": data,
    "bench": bench,
    "completion": completion,
}

if __name__ == "__main__":
    main()

"""The command line: argv → command, recipe, flags and overrides; help and errors. Standard library only."""

from __future__ import annotations

import os
import sys

from distillkit import __version__
from distillkit.arguments import COMMANDS, OWN_FLAGS, TOOLS, Arguments, find_recipe, recipe_files, sort
from distillkit.errors import TRACEBACK, UserError, did_you_mean, report

USAGE = f"""\
usage: distillkit COMMAND [RECIPE] [key=value ...] [flags]

Distil a teacher into a student, compress it, and see everything in one table.

commands:
{{commands}}

RECIPE is a name that `distillkit recipes` lists, or the path of a YAML file.
`distillkit COMMAND --help` shows the keys that matter; start with `distillkit run quickstart`.

distillkit {__version__}
"""

COMMAND_USAGE = """\
usage: distillkit {command} [RECIPE] [key=value ...] [flags]

{purpose}

keys (any key of the config can be set; completion knows them all):
{keys}
  output_dir=PATH                where everything is written (outputs/NAME)
  overwrite=true                 throw away what another config left there

groups (GROUP=OPTION swaps a whole part; custom, where a group has it, starts empty for a _target_ of your own):
  task dataset teacher student loss train generate evaluate compress launch tracker

flags:
  --cfg job [--resolve]          show the config instead of running
  -m, --multirun                 sweep: train.learning_rate=1e-4,5e-5; with hydra/sweeper=optuna search ranges:
                                 'loss.temperature=interval(1,8)'
  --config-dir PATH              a folder with config groups and recipes of your own
  --info [searchpath|defaults]   where the config comes from
  --traceback                    the whole traceback of an error
  --hydra-help                   Hydra's own help; `distillkit {command} RECIPE --help` shows the composed config
"""

TRAIN_KEYS = """\
  train.max_steps=N              optimiser steps; or train.epochs=N
  train.batch_size=N             rows of one step over all processes; train.micro_batch_size=N per forward pass
  train.learning_rate=X          and train.schedule=linear|cosine|constant, train.warmup=X
  train.precision=no|bf16|fp16   arithmetic of forward and backward
  train.seed=N                   everything random follows from it
  launch.num_processes=N         processes (one a GPU)
  resume=auto|never|PATH         continue from a checkpoint"""
KEYS = {
    "train": TRAIN_KEYS,
    "run": "  stages.NAME.set.KEY=VALUE      change one stage; the keys of the other commands change all\n"
    + TRAIN_KEYS,
    "eval": """\
  +evaluate.models.NAME=PATH     one more model of the table; the first is the teacher. Or teacher stores
  evaluate.split=NAME            validation, test, …
  evaluate.limit=N               rows; evaluate.batch_size=N
  evaluate.baseline=NAME         the model trained without a teacher: every other one is tested against it
  evaluate.speed=true|false      measure latency, throughput and memory
  evaluate=lm_eval               with evaluate.tasks=[…]: the tasks of lm-eval in place of a dataset""",
    "generate-pseudo": """\
  generate=OPTION                what is made: soft_labels, text, inputs, or a teacher_store for teacher=cached
  dataset=OPTION                 the rows that the teacher sees
  teacher.path=PATH              folder or hub id""",
    "compress": """\
  compress=OPTION                the chain of steps
  compress.model=PATH            folder or hub id to start from
  compress.steps.NAME.KEY=VALUE  one argument of one step
  +compress.grid.NAME.KEY=[…]    values to try, in every combination
  compress.budget.KEY=X          size_mb, latency_ms, max_quality_drop: the best variant that keeps it is chosen
  +evaluate.models.NAME=PATH     models to compare with, the teacher first""",
    "doctor": """\
  --json                         print the same as JSON
  dataset= student= teacher=     with these, or with RECIPE: memory and hours of each training, from a dry run
  train.batch_size=N             and every other key of the trainings that are estimated
  launch.num_processes=N         processes (one a GPU)""",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command line.

    Returns:
        The exit code: 0, 2 for bad input, 3 for what does not keep a budget or load again, 1 for a bug, 130 for Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    os.environ.pop(TRACEBACK, None)
    if "--traceback" in argv:
        os.environ[TRACEBACK] = "1"
        argv = [token for token in argv if token != "--traceback"]
    try:
        return dispatch(argv)
    except SystemExit as end:  # of Hydra's --help, or of processes that have said why they failed
        return int(end.code or 0)
    except (Exception, KeyboardInterrupt) as error:
        return report(error)


def dispatch(argv: list[str]) -> int:
    """Find out what is asked for and do it."""
    command, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if command in ("--help", "-h", "help"):
        listed = {**COMMANDS, **TOOLS}.items()
        print(USAGE.format(commands="\n".join(f"  {name:<16} {purpose}" for name, purpose in listed)), end="")
        return 0
    if command == "--version" or "--version" in rest:
        print(f"distillkit {__version__}")
        return 0
    if command == "recipes":
        return list_recipes()
    if command in ("completion", "complete"):
        from distillkit import completion

        return completion.main(command, rest)
    if command not in COMMANDS:
        raise UserError(f"unknown command '{command}'", fix=_which_command(command))
    return start(command, sort(rest))


def start(command: str, arguments: Arguments) -> int:
    """Show the help of a command, or hand over to Hydra."""
    wants_help = {"--help", "-h"} & set(arguments.flags)
    if wants_help and not arguments.positional and not arguments.overrides:
        print(COMMAND_USAGE.format(command=command, purpose=COMMANDS[command], keys=KEYS[command]), end="")
        return 0
    name, folder = find_recipe(arguments)
    from distillkit import app

    own = tuple(flag for flag in arguments.flags if flag in OWN_FLAGS.get(command, ()))
    flags = [flag for flag in arguments.flags if flag not in own]
    return app.main(command, name, [folder] if folder else [], flags + arguments.overrides, own)


def list_recipes() -> int:
    """Print each recipe with its purpose and its command: the first two lines of its header."""
    for name, path in recipe_files().items():
        header = [line.lstrip("# ").rstrip() for line in path.read_text(encoding="utf-8").splitlines()[:2]]
        print(f"{name:<16} {header[0]}\n{'':<16} {header[1]}")
    return 0


def _which_command(wrong: str) -> str | None:
    if wrong in recipe_files() or wrong.endswith(".yaml"):
        return f"did you mean 'distillkit run {wrong}'?"
    return did_you_mean(wrong, [*COMMANDS, *TOOLS])

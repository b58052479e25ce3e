"""`python -m experiments NAME`: run one experiment, or fill the documents from the committed results.

Tables for people and a last line of JSON go to stdout, progress to stderr. Exit codes: 0 done, 1 an experiment failed, 2 wrong input,
others as `gpt2opt` has them.
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path

try:
    from experiments.contract import EXPERIMENTS, check_outputs, json_path, write_charts, write_json
    from gpt2opt.errors import guarded, place
    from gpt2opt.settings import check_whole
    from gpt2opt.storage import claim_folder
except KeyboardInterrupt:  # with the message of a command that already runs
    print("gpt2opt: interrupted", file=sys.stderr)
    sys.exit(130)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return guarded(_parser, arguments)


def perform(options: argparse.Namespace) -> int:
    entry, folder = EXPERIMENTS[options.name], options.out or Path("artifacts", options.name)
    check_outputs(options.name, folder)
    arguments = {option.name: getattr(options, option.name) for option in entry.options}
    for option in entry.options:
        if option.least:
            check_whole(option.name, arguments[option.name], *option.least)
    experiment = entry.load()
    with contextlib.redirect_stdout(sys.stderr):  # INC's log and Trainer's progress bar go to stdout
        result = experiment.run(**arguments, **({"out": folder} if entry.takes_folder else {}))
    path = json_path(options.name, claim_folder(folder))
    write_json(path, result)
    write_charts(experiment.charts(result), folder, path)
    for title, table in experiment.tables(result).items():
        print(f"{title}\n\n{table}", end="\n\n")
    print(experiment.caption(result), end="\n\n")
    print(json.dumps({"result": str(path)}), flush=True)
    return 0


def docs(options: argparse.Namespace) -> int:
    from experiments.docs import fill_documents, take_run

    if options.take_run:
        take_run()
    changed = fill_documents()
    print("\n".join(changed) or "nothing changed")
    print(json.dumps({"changed": changed}), flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments", description="Races and controls around gpt2opt.")
    commands = parser.add_subparsers(required=True, metavar="NAME")
    for name, entry in EXPERIMENTS.items():
        sub = commands.add_parser(name, help=entry.help, description=entry.help)
        sub.set_defaults(command=perform, name=name)
        for option in entry.options:
            default = f" (default {option.default})" if option.default != "" else ""
            flag = f"--{option.name.replace('_', '-')}"
            sub.add_argument(flag, dest=option.name, type=type(option.default), default=option.default, help=option.help + default)
        sub.add_argument("--out", type=place, help=f"folder of {name}.json and its charts (default artifacts/{name})")
    sub = commands.add_parser("docs", help="fill every marked table, caption and chart of README and docs from the committed results")
    sub.set_defaults(command=docs)
    sub.add_argument("--take-run", action="store_true", help="first copy traces/run.json to the results of its kind of CPU")
    return parser


if __name__ == "__main__":
    sys.exit(main())

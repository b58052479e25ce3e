"""`python -m gpt2opt`, and the command `gpt2opt`."""

import sys


def main() -> int:
    """Run one command and return its exit code. An interrupt while modules are still imported ends as a later one does."""
    try:
        from gpt2opt.cli import main as run

        return run()
    except KeyboardInterrupt:
        print("gpt2opt: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())

"""TensorBoard with the tab of this package, in a thread of this process."""

from pathlib import Path

from tensorboard import default, program

from gpt2opt.report.profile.plugin import ProfilePlugin


def served(log_dir: Path) -> str:
    """Serve a log directory until this process ends; return the address.

    The plugin is named here, so that it is the one of this working tree, whichever is installed.
    """
    server = program.TensorBoard(plugins=[*default.get_static_plugins(), ProfilePlugin])
    server.configure(argv=["tensorboard", "--logdir", str(log_dir), "--port", "0", "--load_fast", "false"])
    return server.launch()

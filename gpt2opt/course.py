"""The functions of the course's notebook, under the name that its users know; see `gpt2opt.apps.course`."""

from gpt2opt.apps.course import *  # noqa: F403
from gpt2opt.apps.course import __all__  # noqa: F401

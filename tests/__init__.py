"""What a user keeps must not decide what a test finds: the real gpt2 and WikiText-2 in the hub's cache, or a model and text of their own.

This is imported before every test and before the libraries that read these variables.
"""

import os
import tempfile

EMPTY_CACHE = tempfile.TemporaryDirectory()
os.environ.update(HF_HUB_OFFLINE="1", HF_HOME=EMPTY_CACHE.name)
for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "GPT2OPT_MODEL", "GPT2OPT_TEXT"):
    os.environ.pop(name, None)

# `pytest -n 2` runs two workers. Each gets a core of its own: threads of two workers on the same cores would wait for each other.
worker, cores = os.environ.get("PYTEST_XDIST_WORKER"), sorted(os.sched_getaffinity(0))
if worker:
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

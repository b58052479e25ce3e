#!/usr/bin/env bash
# Everything that wants a GPU, in one go, on a machine that has one: the notebook, the tests with the marker `gpu`, and those of stages 1 to 3.
# What came of it lies in artifacts/gpu: report.html and run.json of the run, tests.xml, machine.txt. `make run` and the tests read from hubs
# only what their caches hold.
set -euo pipefail
cd "$(dirname "$0")/../.."
if ! command -v nvidia-smi > /dev/null || ! nvidia-smi > /dev/null 2>&1; then
    echo "nvidia-smi finds no GPU: run this on a machine with a CUDA GPU and its driver" >&2
    exit 2
fi
make install
python=.venv/bin/python
if ! "$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    echo "torch $("$python" -c 'import torch; print(torch.__version__)') sees no GPU: install a CUDA build of the same version into .venv" >&2
    exit 2
fi
out=artifacts/gpu
mkdir -p "$out"
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.max.sm --format=csv > "$out/machine.txt"
cat "$out/machine.txt"
make run
cp traces/run.json "$out/run.json"
"$python" -m gpt2opt report traces --out "$out/report.html"
.venv/bin/pip install -q -c requirements.lock pytest pytest-xdist
"$python" -m pytest tests/stages tests/measure tests/decoding tests/quantize tests/test_prune.py tests/test_finetune.py -m "gpu or not slow" --junitxml "$out/tests.xml"
echo "done: $out holds the report; to commit the record of this GPU: $python -m experiments docs --take-run"

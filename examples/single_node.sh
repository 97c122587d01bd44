#!/usr/bin/env bash
# The whole experiment on one machine, a process a GPU:
#   examples/single_node.sh [PROFILE] [GPUS]
# Collection and the sweeps of notebooks 02 and 03 use all GPUs; then the notebooks find both and do the rest on one.
# Whatever stops it, start it again: what is finished is skipped, what was begun goes on from its last checkpoint.
set -euo pipefail

profile=${1:-llama2-7b}
gpus=${2:-8}

cd "$(dirname "$0")/.."
python=.venv/bin/python # made by `make venv`

together() { # saelib by all processes; a lost one restarts the group, up to three times
    "$python" -m torch.distributed.run --standalone --nproc-per-node "$gpus" --max-restarts 3 -m saelib "$@"
}

together collect --profile "$profile"
together train --profile "$profile" # add `--over latents` where one dictionary is larger than one GPU
"$python" -m saelib run --profile "$profile"

"""A training by ranks of which one kills itself twice.

    torchrun --nproc-per-node 2 -m helpers.rank_restarts FOLDER

Each restart imports this anew: what training needs, and no more.
"""

import os
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from helpers.rank_trainings import KINDS, MODES, trained
from saelib.ranks import process_group


def undisturbed(ranks, folder, die=None):
    """One SAE sharding each way, with checkpoints; one that is there is not made again."""
    for kind, make in KINDS.items():
        if not (folder / kind).exists():
            sharding = make(ranks)
            told = die and (lambda _, row, kind=kind: die(kind, row["step"]))
            sae, history = trained(
                MODES["full"], sharding, checkpoint=folder / f"{kind}.safetensors", on_log=told
            )
            state = sharding.gather_state(sae) | {"resumed_at": torch.tensor(history.resumed_at)}
            if ranks.rank == 0:
                save_file({k: v.detach().contiguous() for k, v in state.items()}, folder / kind)
            ranks.wait()


def killed_and_restarted(folder):
    """Under torchrun: rank 1 kills itself once in each of the two."""
    with process_group("cpu") as ranks:
        due = {"0": "data", "1": "latents"}.get(os.environ["TORCHELASTIC_RESTART_COUNT"])

        def die(kind, step):
            if (kind, step, ranks.rank) == (due, 70, 1):
                os.kill(os.getpid(), signal.SIGKILL)

        undisturbed(ranks, folder, die)


if __name__ == "__main__":
    torch.set_num_threads(1)
    killed_and_restarted(Path(sys.argv[1]))

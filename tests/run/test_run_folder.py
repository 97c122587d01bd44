"""A run's folder after kills: what an earlier attempt left never bars the next."""

import json

from saelib.run.run_folder import TRAIN, RunFolder
from saelib.sae.origin import SEALED
from saelib.sae.spec import make_spec
from saelib.seal import SEAL

SPEC = make_spec("plain", 2, 8, n_latents=16)


def test_a_kill_before_the_first_seal_leaves_no_folder_without_one(tmp_path):
    """Training would end in an SAE that nothing vouches for, were it killed once more."""
    folder = RunFolder(tmp_path / "0123456789ab")
    folder.path.mkdir()
    folder.begin(SPEC, "02_train_sae", "rows")
    (folder.path / SEAL).unlink()
    folder.begin(SPEC, "02_train_sae", "rows")
    assert TRAIN in folder.seal().files


def test_what_was_begun_before_there_were_seals_stays(tmp_path):
    folder = RunFolder(tmp_path / "0123456789ab")
    folder.path.mkdir()
    folder.begin(SPEC, "02_train_sae", "rows")
    (folder.path / SEAL).unlink()
    file = folder.path / TRAIN
    older = {k: v for k, v in json.loads(file.read_text()).items() if k != SEALED}
    file.write_text(json.dumps(older))
    folder.begin(SPEC, "03_train_gated", "other rows")
    assert json.loads(file.read_text()) == older
    assert folder.seal() is None

"""Event files that TensorBoard reads hold the numbers of the histories, and nothing else."""

import struct

import pytest
from tensorboardX.proto import event_pb2

from saelib.__main__ import main
from saelib.run.tensorboard import write_curves

TABLE = "loss,step,tokens,gate_dead\n3.5,10,640,\n2.25,20,1280,0.5\n"


@pytest.fixture
def saes(home):
    folder = home / "data" / "tiny" / "saes"
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
        (folder / name / "history.csv").write_text(TABLE)
    return folder


def scalars(folder):
    """(name, tokens, value) of a folder's events: records of length, checksum, bytes, checksum."""
    (file,) = folder.glob("events.*")
    data = file.read_bytes()
    rows = []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = event_pb2.Event.FromString(data[12 : 12 + length])
        rows += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
        data = data[16 + length :]
    return rows


def test_each_number_of_a_history_is_a_scalar_at_its_tokens(saes):
    folder, n_written = write_curves("tiny")
    assert n_written == 2
    assert folder == saes.parent / "tensorboard"
    expected = [("loss", 640, 3.5), ("loss", 1280, 2.25), ("gate_dead", 1280, 0.5)]
    for name in ("one", "two"):
        assert scalars(folder / name) == expected


def test_what_is_up_to_date_is_left_alone(saes):
    folder, _ = write_curves("tiny")
    before = sorted(path.name for path in folder.glob("*/*"))
    assert write_curves("tiny")[1] == 0
    assert sorted(path.name for path in folder.glob("*/*")) == before


def test_the_command_writes_where_it_is_told(saes, tmp_path, caplog):
    caplog.set_level("INFO", "saelib")
    assert main(["tensorboard", "--profile", "tiny", "--to", str(tmp_path / "curves")]) == 0
    assert (tmp_path / "curves" / "one").is_dir()
    assert "2 SAEs" in caplog.text


def test_a_damaged_history_and_a_profile_without_saes_are_named(saes, home, caplog):
    (saes / "two" / "history.csv").write_text("loss,tokens\nmuch,3\n")
    with pytest.raises(ValueError, match=r"two/history\.csv: damaged"):
        write_curves("tiny")
    assert not (saes.parent / "tensorboard" / "two").exists()
    with pytest.raises(FileNotFoundError, match=r"has no history\.csv: train SAEs"):
        write_curves("empty")

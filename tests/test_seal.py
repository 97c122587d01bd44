"""Seals: every file of a folder is the one that was written, or the reader refuses it by name."""

import json
import logging
from contextlib import suppress

import pytest
import torch
from helpers.sealing import age, flip, resealed
from safetensors.torch import load_file, save_file

from saelib import files, seal
from saelib.config import SAEConfig
from saelib.files import write_text
from saelib.sae import build_sae, load_sae
from saelib.seal import (
    SealError,
    checked,
    is_listed,
    read_seal,
    replace_sealed,
    seal_files,
    sha256_of,
    unseal_files,
)


@pytest.fixture
def folder(tmp_path):
    """A sealed folder of two files."""
    for name in "ab":
        write_text(tmp_path / "it" / name, f"content of {name}\n")
    seal_files(tmp_path / "it", "ab", "run")
    return tmp_path / "it"


@pytest.fixture
def sae_folder(tmp_path):
    """An SAE's folder."""
    config = SAEConfig(d_in=6, n_latents=15, site=2)
    build_sae(config, torch.Generator().manual_seed(0)).save(tmp_path / "sae")
    return tmp_path / "sae"


def test_what_is_whole_is_given_back(folder):
    assert checked(folder / "a") == folder / "a"
    assert json.loads((folder / "seal.json").read_text())["run_id"] == "run"


def test_a_flipped_bit_another_size_and_a_missing_file_are_refused_by_name(folder):
    flip(folder / "a")
    with pytest.raises(SealError, match=rf"{folder}/a: damaged, sha256 \w{{12}} where \w{{12}} is"):
        checked(folder / "a")
    (folder / "a").write_text("")
    with pytest.raises(SealError, match=rf"{folder}/a: damaged, 0 bytes where 13 are sealed; del"):
        checked(folder / "a")
    (folder / "b").unlink()
    with pytest.raises(SealError, match=rf"{folder}/b: missing, seal.json lists it; run `make"):
        checked(folder / "b")


def test_a_file_is_replaced_so_that_a_kill_at_any_write_leaves_it_whole(folder, monkeypatch):
    path, other = folder / "a", folder / "b"
    content = {b"content of a\n"}
    whole = files.os.replace
    for last in range(4):
        writes = []

        def replace(source, target, last=last, writes=writes):
            if len(writes) == last:
                raise KeyboardInterrupt
            writes.append(target)
            whole(source, target)

        new = f"new {last}".encode()
        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(files.os, "replace", replace)
            replace_sealed(path, new)
        assert checked(path).read_bytes() in {*content, new}
        content = {path.read_bytes()}
        assert checked(other) == other
    assert len(writes) == 3
    assert "before" not in read_seal(folder).files["a"]
    path.write_bytes(b"new 2")
    with pytest.raises(SealError, match=r"a: damaged, sha256"):
        checked(path)


def test_what_was_damaged_is_no_content_to_go_back_to(folder):
    (folder / "a").write_text("damaged")
    replace_sealed(folder / "a", b"new")
    assert checked(folder / "a").read_bytes() == b"new"
    (folder / "a").write_text("damaged")
    with pytest.raises(SealError, match="a: damaged"):
        checked(folder / "a")


def test_a_reader_can_be_told_what_heals_and_that_no_seal_is_no_news(folder, caplog):
    flip(folder / "a")
    with pytest.raises(SealError, match=r"a: damaged, .*; build it anew"):
        checked(folder / "a", heals="build it anew")
    flip(folder / "seal.json")
    with pytest.raises(SealError, match=r"seal.json: damaged.*; build it anew"):
        checked(folder / "a", heals="build it anew")
    (folder / "seal.json").unlink()
    assert checked(folder / "a", notice=False) == folder / "a"
    assert caplog.text == ""


def test_what_the_seal_does_not_list_is_not_there_yet(folder):
    (folder / "c").write_text("half")
    assert not is_listed(folder / "c")
    with pytest.raises(SealError, match=rf"{folder}/c: is not in seal.json"):
        checked(folder / "c")
    unseal_files(folder, ["a"])
    assert not is_listed(folder / "a")
    assert is_listed(folder / "b")


@pytest.mark.parametrize("byte", range(0, 220, 7))
def test_a_bit_of_the_seal_itself_is_refused(folder, byte):
    before = json.loads(flip(folder / "seal.json", byte))
    try:
        after = json.loads((folder / "seal.json").read_text())
    except ValueError:
        after = None
    if after != before:  # else white space
        with pytest.raises(SealError, match=r"seal.json: damaged.*; delete the folder"):
            checked(folder / "a")


def test_a_seal_of_a_later_version_is_refused(folder, monkeypatch):
    (folder / "seal.json").unlink()
    monkeypatch.setattr(seal, "FORMAT", 2)
    seal_files(folder, "ab")
    monkeypatch.undo()
    with pytest.raises(SealError, match=r"seal.json: format = 2: expected 1"):
        checked(folder / "a")


def test_a_file_is_hashed_once_a_process_and_again_after_a_change(folder, monkeypatch):
    hashed = []
    whole = seal.hashlib.file_digest

    def file_digest(file, name):
        hashed.append(file.name)
        return whole(file, name)

    age(folder)
    monkeypatch.setattr(seal, "_is_settled", lambda stamp: True)
    monkeypatch.setattr(seal.hashlib, "file_digest", file_digest)
    for _ in range(3):
        checked(folder / "a")
    assert len(hashed) <= 1
    flip(folder / "a")
    with pytest.raises(SealError, match="damaged"):
        checked(folder / "a")


def test_hashes_of_a_bounded_number_of_files_are_remembered(folder, monkeypatch):
    monkeypatch.setattr(seal, "_is_settled", lambda stamp: True)
    monkeypatch.setattr(seal, "KEPT", 3)
    monkeypatch.setattr(seal, "_hashes", {})
    names = [f"f{i}" for i in range(5)]
    for name in names:
        (folder / name).write_text(name)
        sha256_of(folder / name)
    assert list(seal._hashes) == [str(folder / name) for name in names[2:]], "the last ones"


def test_a_file_just_written_is_not_taken_as_known(folder):
    before = sha256_of(folder / "a")
    flip(folder / "a")  # within the resolution of the file system's clock, as it may be
    assert sha256_of(folder / "a") != before


def test_a_folder_without_a_seal_opens_with_one_notice(sae_folder, caplog):
    (sae_folder / "seal.json").unlink()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert load_sae(sae_folder).config.site == 2
    (notice,) = caplog.messages
    assert notice.startswith(f"{sae_folder}: no seal.json, so written by an earlier version")


def test_one_flipped_bit_of_the_weights_is_refused(sae_folder):
    load_sae(sae_folder)
    flip(sae_folder / "weights.safetensors")
    with pytest.raises(SealError, match=r"weights\.safetensors: damaged, sha256"):
        load_sae(sae_folder)


def test_an_edited_configuration_is_refused(sae_folder):
    path = sae_folder / "config.json"
    path.write_text(path.read_text().replace('"site": 2', '"site": 3'))
    with pytest.raises(SealError, match=r"config\.json: damaged, sha256"):
        load_sae(sae_folder)


def test_an_sae_whose_writer_was_killed_before_its_seal_is_not_finished(sae_folder):
    unseal_files(sae_folder, ["config.json"])
    with pytest.raises(FileNotFoundError, match=r"not a \(finished\) SAE folder"):
        load_sae(sae_folder)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64, torch.int32])
def test_weights_of_another_dtype_are_refused_by_name(sae_folder, kind):
    path = sae_folder / "weights.safetensors"
    save_file(load_file(path) | {"b_dec": torch.zeros(6, dtype=kind)}, path)
    resealed(sae_folder)
    with pytest.raises(ValueError, match=rf"weights.safetensors: b_dec is {kind}; expected torch"):
        load_sae(sae_folder)


def test_an_sae_of_another_dtype_is_not_written(tmp_path):
    sae = build_sae(SAEConfig(d_in=6, n_latents=15, site=2)).double()
    with pytest.raises(ValueError, match=r"is torch\.float64; an SAE's folder holds torch"):
        sae.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("has_seal", [True, False])
def test_weights_that_are_no_numbers_are_refused(sae_folder, value, has_seal):
    path = sae_folder / "weights.safetensors"
    tensors = load_file(path)
    tensors["W_dec"][3, 2] = value
    save_file(tensors, path)
    resealed(sae_folder)
    if not has_seal:
        (sae_folder / "seal.json").unlink()
    with pytest.raises(ValueError, match=r"damaged \(W_dec holds values that are not finite\)"):
        load_sae(sae_folder)


def test_finite_weights_whose_sum_is_not_are_opened(sae_folder):
    path = sae_folder / "weights.safetensors"
    save_file(load_file(path) | {"b_dec": torch.full((6,), 3e38)}, path)
    assert load_sae(resealed(sae_folder)).b_dec[0] == torch.tensor(3e38)


def test_loading_draws_no_random_numbers_and_keeps_the_layout(sae_folder):
    before = torch.get_rng_state()
    loaded = load_sae(sae_folder)
    assert torch.equal(torch.get_rng_state(), before)
    fresh = build_sae(loaded.config)
    for name, tensor in fresh.state_dict().items():
        assert loaded.state_dict()[name].stride() == tensor.stride()

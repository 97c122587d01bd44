"""SAEs as artifacts: units, decoder constraint, folders, refusals."""

import json
import math

import pytest
import torch
from helpers.sealing import resealed

from saelib.config import ConfigError, SAEConfig
from saelib.sae import build_sae, load_sae
from saelib.sae.base import DRAWN_ROWS, How, check_store, random_rows

ARCHS = ["sae", "gated"]


def _sae(arch, **changes):
    sae = build_sae(
        SAEConfig(arch=arch, d_in=6, n_latents=15, site=2, **changes),
        torch.Generator().manual_seed(0),
    )
    sae.set_normalizer_(torch.arange(6.0), 0.5)
    return sae.requires_grad_(False)


@pytest.mark.parametrize("arch", ARCHS)
def test_saved_and_loaded_sae_is_bit_identical(arch, tmp_path):
    sae, x = _sae(arch), torch.randn(9, 6)
    sae.save(tmp_path / "a", {"fvu": 0.25})
    loaded = load_sae(tmp_path / "a")
    assert loaded.config == sae.config
    assert torch.equal(loaded.reconstruct(x), sae.reconstruct(x))
    assert json.loads((tmp_path / "a/metrics.json").read_text()) == {"fvu": 0.25}


@pytest.mark.parametrize(
    "shard", [slice(0, 90), slice(90, 2 * DRAWN_ROWS), slice(DRAWN_ROWS + 5, None), slice(7, 9)]
)
def test_a_shard_draws_the_rows_that_the_whole_dictionary_has_there(shard):
    config = SAEConfig(d_in=3, n_latents=2 * DRAWN_ROWS + 100)  # two blocks and a remainder
    whole, ranks = (torch.Generator().manual_seed(5) for _ in range(2))
    rows = random_rows(config, whole, slice(None))
    assert torch.equal(random_rows(config, ranks, shard), rows[shard])
    assert torch.equal(whole.get_state(), ranks.get_state())  # what is drawn next agrees too


@pytest.mark.parametrize("arch", ARCHS)
def test_same_seed_gives_the_same_bytes(arch, tmp_path):
    for name in "ab":
        _sae(arch).save(tmp_path / name)
    assert (tmp_path / "a/weights.safetensors").read_bytes() == (
        tmp_path / "b/weights.safetensors"
    ).read_bytes()


def test_normaliser_is_scale_times_x_minus_mean():
    sae = _sae("sae")
    x = torch.arange(6.0)[None] + 4
    torch.testing.assert_close(sae.normalize(x), torch.full((1, 6), 2.0))
    torch.testing.assert_close(sae.denormalize(sae.normalize(x)), x)


@pytest.mark.parametrize("arch", ARCHS)
def test_reconstruction_in_model_units_folds_into_the_weights(arch):
    # DESIGN: x_hat = x_hat_n / s + mean; b_enc, b_gate, b_mag <- b / s; b_dec <- b_dec / s + mean;
    # f <- f / s
    sae, x = _sae(arch), 3 * torch.randn(20, 6)
    with torch.no_grad():
        for name in (*sae.bias_names(), "b_dec"):
            getattr(sae, name).add_(0.1)
    s, mean = sae.scale, sae.mean
    biases = {n: getattr(sae, n) / (1 if n == "r_mag" else s) for n in sae.bias_names()}
    folded = build_sae(sae.config).requires_grad_(False)
    folded.load_state_dict(
        {"W_enc": sae.W_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec / s + mean, **biases},
        strict=False,
    )
    torch.testing.assert_close(folded.encode(x), sae.encode_raw(x) / s)
    torch.testing.assert_close(folded.decode(folded.encode(x)), sae.reconstruct(x))


def test_decoder_rows_start_at_unit_norm_and_return_to_it():
    sae = _sae("sae")
    with torch.no_grad():
        sae.W_dec *= 3
    sae.unit_norm_decoder_()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(15))


def test_projected_gradient_is_orthogonal_to_each_decoder_row():
    sae = _sae("sae").requires_grad_(True)
    sae.loss_terms(torch.randn(8, 6), 0.1, How("plain")).total.mean().backward()
    assert (sae.W_dec.grad * sae.W_dec).sum(1).abs().max() > 1e-3
    sae.project_decoder_grad_()
    assert (sae.W_dec.grad * sae.W_dec).sum(1).abs().max() < 1e-5


def test_norm_weighted_decoder_is_left_free():
    sae = _sae("sae", l1_mode="norm_weighted")
    with torch.no_grad():
        sae.W_dec *= 3
    sae.unit_norm_decoder_()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.full((15,), 3.0))


def test_wrong_width_names_both_widths():
    with pytest.raises(ValueError, match=r"d_in = 6.*width 7"):
        _sae("sae").normalize(torch.zeros(2, 7))
    with pytest.raises(ValueError, match=r"d_in = 6.*width 8"):
        check_store(_sae("sae"), 8, (2,))


def test_wrong_site_names_both_sites():
    with pytest.raises(ValueError, match=r"site 2.*\[3, 4\]"):
        check_store(_sae("sae"), 6, (3, 4))


def test_unfinished_folder_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        load_sae(tmp_path)


def test_weights_of_another_architecture_are_refused(tmp_path):
    _sae("sae").save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"arch": "gated"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    resealed(tmp_path)
    with pytest.raises(ValueError, match=r"weights\.safetensors does not fit"):
        load_sae(tmp_path)


def test_weights_too_small_for_their_configuration_are_refused_before_room_is_made(tmp_path):
    _sae("sae").save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"n_latents": 100}
    (tmp_path / "config.json").write_text(json.dumps(config))
    resealed(tmp_path)
    message = r"weights\.safetensors does not fit .*config\.json: it is smaller than an SAE of d_in"
    with pytest.raises(ValueError, match=message + " = 6, n_latents = 100"):
        load_sae(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", r"expected a mapping of fields, found \[\]"),
        ("null", "expected a mapping of fields, found None"),
        ('{"arch": "brand new"}', "SAEConfig.arch = 'brand new': expected one of 'sae'"),
        ('{"arch": "topk", "options": {"k": 0}}', "TopKOptions.k = 0"),
        ('{"options": {"k": 4}}', "AuxKOptions: unknown key 'k'"),
    ],
)
def test_a_configuration_that_describes_no_sae_is_refused_by_file(text, message, tmp_path):
    _sae("sae").save(tmp_path)
    (tmp_path / "config.json").write_text(text)
    resealed(tmp_path)
    with pytest.raises(ConfigError, match=rf"{tmp_path}/config\.json: {message}"):
        load_sae(tmp_path)


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path):
    sae = _sae("sae")
    sae.b_dec.data[3] = math.nan
    sae.save(tmp_path)
    message = rf"{tmp_path}/weights.safetensors: damaged \(b_dec holds values that are not finite"
    with pytest.raises(ValueError, match=message):
        load_sae(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors"])
def test_a_damaged_file_is_refused_by_name(name, tmp_path):
    _sae("sae").save(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=rf"{tmp_path}/{name}: damaged"):
        load_sae(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("n_latents", 0, "at least 1"),
        ("arch", 3, "a string"),
        ("d_in", 2.5, "whole number"),
        ("site", -1, "0"),
    ],
)
def test_bad_configuration_names_field_value_and_accepted(field, value, accepted):
    with pytest.raises(ConfigError, match=field) as error:
        SAEConfig(**{field: value})
    assert repr(value) in str(error.value)
    assert accepted in str(error.value)


def test_an_unknown_architecture_is_refused_with_the_known_ones():
    with pytest.raises(
        ConfigError, match=r"SAEConfig\.arch = 'tok': expected one of 'sae', 'gated'"
    ):
        build_sae(SAEConfig(arch="tok"))


def test_weights_are_readable_by_whoever_may_read_other_new_files(tmp_path):
    _sae("sae").save(tmp_path / "sae")
    (tmp_path / "other").write_text("")
    modes = {
        path.stat().st_mode & 0o777 for path in (tmp_path / "other", *(tmp_path / "sae").iterdir())
    }
    assert len(modes) == 1

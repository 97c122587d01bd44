"""Specs: arms, mixed fields, and the names of runs."""

import pytest

from saelib.config import ConfigError, SAEConfig, TrainConfig
from saelib.sae import ARCHITECTURES, build_sae, load_sae
from saelib.sae.spec import ARMS, COMPARED, make_spec, run_id
from saelib.sae.trainer import Trainer


def test_every_objective_of_every_architecture_is_an_arm_of_its_own():
    assert len(ARMS) == sum(len(sae_class.LOSSES) for sae_class in ARCHITECTURES.values())
    for arm, (arch, loss) in ARMS.items():
        assert loss == arm
        spec = make_spec(arm, 3, 24, n_latents=96)
        assert (spec.arm, spec.sae.arch, spec.train.loss) == (arm, arch, loss)
        assert spec.sae.site == 3
    assert set(COMPARED) <= set(ARMS)


def test_settings_go_to_the_configuration_that_has_the_field():
    spec = make_spec("full", 2, 24, n_latents=96, lr=3e-4, lam=2.0)
    assert (spec.sae.n_latents, spec.train.lr, spec.train.lam) == (96, 3e-4, 2.0)
    assert (spec.options, spec.fixed_l0, spec.nominal_l0) == ("", None, None)


def test_an_unknown_arm_or_field_is_refused_by_name():
    with pytest.raises(ConfigError, match="arm = 'plan': expected one of plain, two_term, full"):
        make_spec("plan", 2, 24)
    with pytest.raises(ConfigError, match="unknown field 'widht'"):
        make_spec("plain", 2, 24, widht=3)
    with pytest.raises(ConfigError, match="unknown key 'depth'"):
        make_spec("plain", 2, 24, options={"depth": 3})
    with pytest.raises(ConfigError, match=r"accepted: aux_k$"):
        make_spec("plain", 2, 24, options={"depth": 3})


@pytest.mark.parametrize(("field", "value"), [("arch", "gated"), ("loss", "full")])
def test_what_an_arm_says_cannot_be_said_otherwise(field, value):
    with pytest.raises(ConfigError, match=f"{field} = '{value}': arm 'plain' says it"):
        make_spec("plain", 2, 24, **{field: value})


def test_run_id_depends_on_everything_that_shapes_the_weights():
    base = run_id(SAEConfig(), TrainConfig(), "store")
    assert base == run_id(SAEConfig(), TrainConfig(), "store")
    others = [
        run_id(SAEConfig(site=1), TrainConfig(), "store"),
        run_id(SAEConfig(), TrainConfig(lam=2.0), "store"),
        run_id(SAEConfig(), TrainConfig(seed=1), "store"),
        run_id(SAEConfig(), TrainConfig(), "other"),
    ]
    assert len({base, *others}) == 5


def test_a_field_at_its_default_is_left_out_of_a_run_s_name():
    assert TrainConfig(lam=2.0).to_dict(omit_defaults=True) == {"lam": 2.0}
    assert SAEConfig().to_dict(omit_defaults=True) == {}
    assert run_id(SAEConfig(n_latents=2304), TrainConfig(lam=1), "store") == run_id(
        SAEConfig(), TrainConfig(), "store"
    )


def test_run_id_refuses_a_loss_of_the_other_architecture():
    with pytest.raises(ConfigError, match="loss 'full' does not fit arch 'sae'"):
        run_id(SAEConfig(), TrainConfig(loss="full"), "store")


def test_a_run_keeps_the_name_that_it_had_before_architectures_had_options():
    assert run_id(SAEConfig(), TrainConfig(), "store") == "46f270365383"
    gated = make_spec("full", 2, 24, n_latents=96, lam=2.0)
    assert run_id(gated.sae, gated.train, "store") == "cebd4d2500aa"


@pytest.mark.parametrize("arm", ["two_term", "full"])
def test_a_gated_sae_is_not_trained_with_an_l1_weighted_by_free_decoder_norms(arm):
    reason = r"l1_mode = 'norm_weighted': expected 'unit_norm' to train arch 'gated'.* r_mag"
    sae = SAEConfig("gated", 24, 96, l1_mode="norm_weighted")
    train = TrainConfig(loss=arm)
    with pytest.raises(ConfigError, match=reason):
        make_spec(arm, 2, 24, n_latents=96, l1_mode="norm_weighted")
    with pytest.raises(ConfigError, match=reason):
        run_id(sae, train, "store")
    with pytest.raises(ConfigError, match=reason):
        Trainer(build_sae(sae), train)


def test_a_plain_sae_is_trained_so_and_a_gated_one_can_be_opened(tmp_path):
    assert make_spec("plain", 2, 24, l1_mode="norm_weighted").sae.l1_mode == "norm_weighted"
    build_sae(SAEConfig("gated", 24, 96, l1_mode="norm_weighted")).save(tmp_path / "sae")
    assert load_sae(tmp_path / "sae").config.l1_mode == "norm_weighted"

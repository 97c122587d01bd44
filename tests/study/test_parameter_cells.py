"""Every notebook's parameter cell holds just its model's fields, in range in every profile."""

import pytest

from saelib.config import ConfigError
from saelib.run import profiles, source_notebooks
from saelib.study.notebooks import PARAMETERS


def test_every_notebook_has_its_parameters_declared():
    assert [path.stem for path in source_notebooks.sources()] == list(PARAMETERS)


@pytest.mark.parametrize("path", source_notebooks.sources(), ids=lambda path: path.stem)
def test_a_parameter_cell_holds_the_fields_of_its_model(path):
    assert set(source_notebooks.parameters(path)) == set(PARAMETERS[path.stem].model_fields)


@pytest.mark.parametrize("profile", ["smoke", "default", "full", "enwik8", "llama2-7b"])
def test_the_shipped_profiles_are_in_range(profile):
    for path, values in profiles.resolve_profile(profile).items():
        PARAMETERS[path.stem].read({**source_notebooks.parameters(path), **values}, path.stem)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("01_collect", {"source": "jsonl"}, "path = '': expected a path or hub id for 'jsonl'"),
        ("01_collect", {"min_ctx_len": 200}, "min_ctx_len = 200: expected 0 to ctx_len = 128"),
        ("01_collect", {"store_dtype": "int4"}, "store_dtype = 'int4': expected one of 'auto'"),
        ("01_collect", {"corpus_seed": -1}, "corpus_seed = -1: expected 0 or more"),
        ("02_train_sae", {"stop_at": 0.0}, "stop_at = 0.0: expected a share in (0, 1]"),
        ("02_train_sae", {"margin": -0.5}, "margin = -0.5: expected 0 or more"),
        ("03_train_gated", {"lengths": [1.0, 0.0]}, "lengths = [1.0, 0.0]: expected above 0"),
        ("03_train_gated", {"snapshots": 0}, "snapshots = 0: expected above 0"),
        ("04_resampling", {"dying_lr": 0.0}, "dying_lr = 0.0: expected a learning rate > 0"),
        ("05_layer_analysis", {"depth_step": -1}, "depth_step = -1: expected above 0"),
        ("05_layer_analysis", {"cause_lambdas": [0.0]}, "cause_lambdas = [0.0]: expected above 0"),
        (
            "07_architectures",
            {"l0_targets": [32.0, 769.0]},
            "l0_targets = [32.0, 769.0]: expected at most n_latents = 768",
        ),
        (
            "07_architectures",
            {"l0_targets": [32.0, 32.0]},
            "l0_targets = [32.0, 32.0]: expected L0 that rise, each once",
        ),
        (
            "07_architectures",
            {"lambdas_tanh": [2.5001, 2.5002]},
            "lambdas_tanh = [2.5001, 2.5002]: expected λ that differ in their first three digits",
        ),
        (
            "07_architectures",
            {"lambdas_p_anneal": [2.5, 2.5]},
            "lambdas_p_anneal = [2.5, 2.5]: expected each element once",
        ),
        (
            "07_architectures",
            {"lam_full": 0.0},
            "lam_full = 0.0: expected a multiple of lambdas = [0.8, 2.5, 8.0] with which they",
        ),
    ],
)
def test_a_value_out_of_range_is_refused_in_the_user_s_words(name, values, expected):
    (path,) = source_notebooks.sources([name])
    with pytest.raises(ConfigError) as error:
        PARAMETERS[name].read(source_notebooks.parameters(path) | values, name)
    assert str(error.value).startswith(f"{name}: {expected}")

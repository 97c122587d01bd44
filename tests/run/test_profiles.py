"""Profiles, settings and grids: what each notebook gets, and what is refused."""

import re
import subprocess
from pathlib import Path

import pytest
from helpers.toy_workbook import write_notebook, write_profile

from saelib.config import ConfigError
from saelib.run.jobs import jobs_of
from saelib.run.profiles import load_profile


def test_a_profile_gives_each_notebook_the_common_keys_it_has_and_then_its_own(home):
    write_notebook(home, "01_a", "profile = ''\nn = 1\nmodel = 'x'\n")
    write_notebook(home, "02_b", "n = 1\nlr = 0.1\n")
    write_profile(home, "common: {n: 5, model: m}\nnotebooks:\n  02_b: {n: 6, lr: 2}\n", "big")
    one, two = jobs_of("big")
    assert (one.name, dict(one.parameters)) == ("01_a", {"n": 5, "model": "m", "profile": "big"})
    assert (two.name, dict(two.parameters)) == ("02_b", {"n": 6, "lr": 2.0})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "common: {stps: 1}",
            "common: no notebook has the parameter 'stps'; did you mean 'steps'?",
        ),
        ("common: {lr: 3e-4}", "lr = '3e-4'"),
        ("notebooks: {01_a: {zz: 1}}", "01_a: unknown parameter 'zz'"),
        ("notebooks: {09_z: {lr: 1}}", "unknown notebook '09_z'"),
        ("notebook: {}", "unknown section 'notebook'; accepted: common, notebooks"),
        ("common: [1]", "expected a mapping"),
        ("common: {profile: x}", "'profile' is the name of the file"),
        ("common: {a", "not YAML"),
        ("common: {n: 2001-99-99}", "not YAML: a value that cannot be read (month must be"),
        ("common: {n: !!bool x}", "not YAML: a value that cannot be read ('x')"),
        ("[" * 5000, "not YAML: brackets nested too deeply"),
    ],
)
def test_a_wrong_profile_is_refused_even_when_the_wrong_part_is_another_notebook_s(
    home, text, message
):
    write_notebook(home, "01_a")
    write_notebook(home, "02_b", "profile = ''\n")
    write_profile(home, text)
    with pytest.raises(ConfigError) as error:
        jobs_of("smoke", ["02_b"])
    assert message in str(error.value)


def test_an_unknown_profile_or_notebook_is_refused_with_what_there_is(home):
    write_notebook(home, "01_a")
    write_profile(home, "")
    with pytest.raises(ConfigError, match="profile 'smok': accepted: smoke"):
        jobs_of("smok")
    with pytest.raises(ConfigError, match="notebook '07': accepted: 01_a"):
        jobs_of("smoke", ["07"])


@pytest.mark.parametrize("name", ["", "recorded", "assets", "../smoke", "a.b", "."])
def test_a_name_that_is_no_folder_of_a_profile_s_own_is_refused(home, name):
    write_notebook(home, "01_a")
    for each in ("smoke", "recorded", "assets", "a.b"):
        write_profile(home, "", each)
    with pytest.raises(ConfigError, match=re.escape(f"profile {name!r}: accepted: smoke (")):
        load_profile(name)


def test_a_profile_s_name_without_end_is_not_repeated_in_full(home):
    with pytest.raises(ConfigError, match=r"profile 'x+…") as error:
        load_profile("x" * 10**6)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("name", ["", "recorded", "assets", "..", "a/b", "smoke/."])
def test_clean_data_removes_a_profile_s_folder_and_no_other(tmp_path, name):
    for folder in ("recorded", "assets", "smoke", "a/b"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    make = [
        "make",
        "-s",
        "-C",
        tmp_path,
        "-f",
        Path(__file__).resolve().parents[2] / "Makefile",
        "clean-data",
    ]
    refused = subprocess.run([*make, f"PROFILE={name}"], capture_output=True, text=True)
    assert refused.returncode != 0
    assert f"error: PROFILE='{name}'" in refused.stdout
    assert len(list((tmp_path / "data").iterdir())) == 4
    assert (
        subprocess.run(make, capture_output=True).returncode != 0
    )  # the default is not meant by saying nothing
    subprocess.run([*make, "PROFILE=smoke"], check=True, capture_output=True)
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == [
        "a",
        "assets",
        "recorded",
    ]


def test_settings_override_the_profile_and_must_fit_a_chosen_notebook(home):
    write_notebook(home, "01_a")
    write_notebook(home, "02_b", "n = 1\n")
    write_profile(home, "common: {lr: 0.5}")
    assert jobs_of("smoke", overrides={"lr": 2})[0].parameters["lr"] == 2.0
    for overrides in ({"lr": 1.0, "nn": 2}, {"lr": 1.0}, {"profile": "x"}):
        with pytest.raises(ConfigError):
            jobs_of("smoke", ["02_b"], overrides)


def test_a_grid_is_the_product_of_its_lists_for_the_notebooks_that_have_its_names(home):
    write_notebook(home, "01_a", "n = 1\n")
    write_notebook(home, "02_b", "lr = 0.1\nseed = 0\n")
    write_profile(home, "")
    (home / "grid.yaml").write_text("lr: [1, 2.0]\nseed: [0, 1]\n")
    jobs = jobs_of("smoke", grid=home / "grid.yaml")
    assert [(j.name, *j.parameters.values()) for j in jobs] == [
        ("02_b", lr, seed) for lr in (1.0, 2.0) for seed in (0, 1)
    ]
    assert len({j.output for j in jobs}) == 4
    assert all(
        j.output.parent == home / "data" / "smoke" / "grid" / j.grid / "notebooks" for j in jobs
    )


@pytest.mark.parametrize("text", ["lr: 1", "lr: []", "zz: [1]", "profile: [a]", "lr: ['x']"])
def test_a_wrong_grid_is_refused(home, text):
    write_notebook(home, "01_a")
    write_profile(home, "")
    (home / "grid.yaml").write_text(text)
    with pytest.raises(ConfigError):
        jobs_of("smoke", grid=home / "grid.yaml")


def test_a_profile_that_is_not_utf8_is_named_with_line_and_byte(home):
    write_notebook(home, "01_a")
    write_profile(home, "")
    path = home / "notebooks" / "profiles" / "smoke.yaml"
    path.write_bytes("common:\n  model: café\n".encode("latin-1"))
    message = f"{path}: not UTF-8 (invalid continuation byte, byte 0xe9 in line 2)"
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_profile("smoke")


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("common:\n  lr: 0.5\n  lr: 0.1\n", "lr", (2, 3)),
        ("common: {lr: 0.5}\nnotebooks: {}\ncommon: {steps: 3}\n", "common", (1, 3)),
        ("notebooks:\n  01_a:\n    lr: 1\n  01_a:\n    lr: 2\n", "01_a", (2, 4)),
    ],
)
def test_a_key_that_stands_twice_is_refused_by_name_and_line(home, text, key, lines):
    write_notebook(home, "01_a")
    write_profile(home, text)
    message = rf"smoke\.yaml: .*the key '{key}' .* twice, in line {lines[0]} and in line {lines[1]}"
    with pytest.raises(ConfigError, match=message):
        load_profile("smoke")


def test_a_grid_of_too_many_points_is_refused_before_it_is_made(home):
    write_notebook(home, "01_a")
    write_profile(home, "")
    axes = ["a", "b", "c", "d"]
    (home / "grid.yaml").write_text("".join(f"{axis}: {list(range(400))}\n" for axis in axes))
    with pytest.raises(ConfigError, match=r"grid\.yaml: 25,600,000,000 points; .* at most 10,000"):
        jobs_of("smoke", grid=home / "grid.yaml")

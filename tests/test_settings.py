"""The settings: flags that torchrun leaves alone, groups of a size that one can read, old runs that go on."""

import dataclasses
import json

import pytest
from torch.distributed.run import get_args_parser

import config
import engine.command as command
from engine.command import UserError
from engine.run import check_settings, settings_of

PARSER = command.Flags("").add_settings(config.Config, config.GROUPS)
FLAGS = sorted({flag for action in PARSER._actions for flag in action.option_strings} - {"-h"})


@pytest.mark.parametrize("flag", FLAGS)
def test_no_flag_is_taken_for_one_of_torchruns(flag):
    """A prefix of torchrun's options would be: --run is one of --run-path."""
    found = get_args_parser().parse_args(["--nproc_per_node", "1", "train.py", flag, "1"])
    assert found.training_script_args == [flag, "1"]


def test_the_flags_are_few_and_each_explains_its_values():
    groups = {title: names.split() for title, names in config.GROUPS.items()}
    assert sum(map(len, groups.values())) <= 48 and sum(len(x) for x in list(groups.values())[:4]) <= 30
    fields = {f.name: f.metadata for f in dataclasses.fields(config.Config)}
    shown = PARSER.format_help()
    for name in (name for names in groups.values() for name in names):
        assert f"--{name.replace('_', '-')}" in shown
        assert all(
            what and f"{value}: {what}" in fields[name]["help"]
            for value, what in (fields[name]["values"] or {}).items()
        )


def test_a_run_made_before_a_setting_existed_goes_on_with_its_default(tmp_path):
    cfg = config.parse(["--name", "old"])
    old = {k: v for k, v in settings_of(cfg).items() if k not in ("kl", "d_samples")}
    (tmp_path / "config.json").write_text(json.dumps(dict(settings=old)))
    check_settings(tmp_path, cfg)
    with pytest.raises(UserError, match="kl 'k3' -> 'k2'"):
        check_settings(tmp_path, dataclasses.replace(cfg, kl="k2"))

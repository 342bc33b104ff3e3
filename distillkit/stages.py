"""The stages of `run`: the recipe's config with some groups swapped and some values set, typed."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distillkit.errors import UserError, did_you_mean
from distillkit.explain import explain_value
from distillkit.freeze import DECIDES, StageJob, digest, leaves, plain, typed
from distillkit.schema import Config

KEYS = [field.name for field in fields(Config)]
ALLOWED = list(DECIDES)


def resolve_stages(cfg: DictConfig) -> dict[str, StageJob]:
    """Type every stage of a composed, unresolved config, in order. Needs a live Hydra.

    A stage's `upstream` holds the digest of each earlier stage whose folder it names: when that one changes,
    this one's config changes too.
    """
    if not cfg.stages:
        raise UserError("no stages", where="stages", fix="`run` needs a recipe with stages; see `distillkit recipes`")
    jobs: dict[str, StageJob] = {}
    for name in cfg.stages:
        jobs[name] = _resolve(cfg, name, jobs)
    return jobs


def resolve_trainings(cfg: DictConfig) -> dict[str, StageJob]:
    """Type what `doctor` shall estimate: the trainings of a recipe's stages, or the one that the config describes.

    There is none where neither a recipe nor any part of a training was chosen. Needs a live Hydra.
    """
    if cfg.stages:
        return {name: job for name, job in resolve_stages(cfg).items() if job.command == "train"}
    hydra = HydraConfig.get()
    chosen = {override.lstrip("+~").partition("=")[0].partition(".")[0] for override in hydra.overrides.task}
    if hydra.job.config_name == "config" and not chosen & {"dataset", "student", "teacher"}:
        return {}
    return {"train": StageJob("train", "train", typed(cfg, "train"))}


def _resolve(cfg: DictConfig, name: str, earlier: dict[str, StageJob]) -> StageJob:
    where = f"stages.{name}"
    stage = OmegaConf.to_container(cfg.stages[name], resolve=False)
    assert isinstance(stage, dict)
    command, folder = stage["command"], str(cfg.output_dir)
    if command not in ALLOWED:
        raise UserError(f"unknown command '{command}'", where=f"{where}.command", fix=did_you_mean(command, ALLOWED))
    if not re.fullmatch(r"[\w-]+", name):
        raise UserError("a stage's name is made of letters, digits, - and _", where=where)
    for key in set(stage["set"]) - set(KEYS):
        raise UserError("unknown key", where=f"{where}.set.{key}", fix=did_you_mean(key, KEYS))
    own = cfg.copy()
    OmegaConf.set_struct(own, False)
    for group, option in stage["choose"].items():
        chosen = _option(group, option, f"{where}.choose.{group}")
        own[group] = getattr(Config(), group)
        own.merge_with(chosen)
    try:
        own.merge_with(stage["set"])
    except OmegaConfBaseException as error:
        raise explain_value(error, prefix=f"{where}.set.") from error
    own.merge_with({"name": f"{cfg.name}-{name}", "output_dir": f"{folder}/{name}", "root_dir": folder})
    try:
        config = typed(own, command)
    except OmegaConfBaseException as error:
        raise explain_value(error, prefix=f"{where}: ") from error
    config.upstream = _upstream(plain(config), earlier)
    return StageJob(name, command, config)


def _option(group: str, option: str, where: str) -> DictConfig:
    """Compose one option of a group afresh."""
    assert GlobalHydra.instance().hydra is not None
    loader = GlobalHydra.instance().config_loader()
    groups = [known for known in loader.list_groups("") if known != "hydra"]
    if group not in groups:
        raise UserError(f"no config group '{group}'", where=where, fix=did_you_mean(group, groups))
    if option not in loader.get_group_options(group):
        raise UserError(f"no option '{option}'", where=where, fix=did_you_mean(option, loader.get_group_options(group)))
    composed = compose(f"{group}/{option}")
    OmegaConf.set_struct(composed, None)
    return composed


def _upstream(config: dict[str, Any], earlier: dict[str, StageJob]) -> dict[str, str]:
    own = ("name", "output_dir", "root_dir")
    texts = [f"{value}/" for key, value in leaves(config) if isinstance(value, str) and key not in own]
    return {
        name: digest(job.config, job.command)
        for name, job in earlier.items()
        if any(f"{job.config.output_dir}/" in text for text in texts)
    }

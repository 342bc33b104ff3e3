"""Shell completion: scripts for bash, zsh and fish, and what they ask: `distillkit complete WORD ...`.

The last word is the one under the cursor. Commands and recipes are completed without Hydra; keys, groups and values
by Hydra, from the config that the words before it compose.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from distillkit.arguments import COMMANDS, FLAGS, OWN_FLAGS, TOOLS, data_folder, find_recipe, recipe_files, sort
from distillkit.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from omegaconf import DictConfig

BASH = r"""
_distillkit() {
    local line="${COMP_LINE:0:COMP_POINT}" word prefix
    local -a words
    read -ra words <<< "$line"
    [[ "$line" == *" " ]] && words+=("")
    word="${words[-1]}"
    mapfile -t COMPREPLY < <("${words[0]}" complete "${words[@]:1}" 2>/dev/null)
    if [[ "$COMP_WORDBREAKS" == *=* && "$word" == *=* ]]; then  # bash replaces only what follows the =
        prefix="${word%"${word##*=}"}"
        COMPREPLY=("${COMPREPLY[@]#"$prefix"}")
    fi
    [[ "${COMPREPLY[*]}" == *[=./] ]] && compopt -o nospace
}
complete -F _distillkit distillkit
"""
ZSH = r"""
#compdef distillkit
_distillkit() {
    local -a found
    found=("${(@f)$("${words[1]}" complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    compadd -Q -- ${found:#*[=./]}
    compadd -Q -S '' -- ${(M)found:#*[=./]}
}
compdef _distillkit distillkit
"""
FISH = r"""
function __distillkit
    set -l words (commandline -opc)
    $words[1] complete $words[2..-1] (commandline -ct | string collect --allow-empty) 2>/dev/null
end
complete -c distillkit -f -a '(__distillkit)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def main(command: str, words: list[str]) -> int:
    """Print the script of a shell, or the candidates for the last word."""
    if command == "complete":
        print("\n".join(candidates(words or [""])))
        return 0
    if len(words) != 1 or words[0] not in SCRIPTS:
        wrong = " ".join(words)
        fix = did_you_mean(wrong, list(SCRIPTS)) if wrong else "write `distillkit completion bash`, zsh or fish"
        raise UserError(f"unknown shell '{wrong}'" if wrong else "which shell?", fix=fix)
    print(SCRIPTS[words[0]].strip())
    return 0


def candidates(words: list[str]) -> list[str]:
    """Return every completion of the last word."""
    *before, word = words
    if not before:
        found = [*COMMANDS, *TOOLS, "--help", "--version"]
    elif before[0] == "completion":
        found = list(SCRIPTS)
    elif before[0] not in COMMANDS:
        found = []
    elif word.startswith("-"):
        found = [*FLAGS, *OWN_FLAGS.get(before[0], ())]
    elif before[-1] in ("--cfg", "-c"):
        found = ["job", "hydra", "all"]
    else:
        found = _of_command(before[1:], word)
    return sorted(candidate for candidate in set(found) if candidate.startswith(word))


def _of_command(before: list[str], word: str) -> list[str]:
    arguments = sort(before)
    given = arguments.value("--config-dir", "-cd")
    own = [Path(given)] if given and Path(given).is_dir() else []
    if not arguments.positional and "=" not in word and not word.startswith(("+", "~")):
        found = [*recipe_files(), *(path.stem for folder in own for path in folder.glob("*.yaml")), *_paths(word)]
    else:
        found = []
    try:
        name, folder = find_recipe(arguments)
    except UserError:
        return found
    folders = [path.resolve() for path in (*([folder] if folder else []), *own)]
    name = arguments.value("--config-name", "-cn") or name
    return found + _keys(name, folders, arguments.overrides, word)


def _paths(word: str) -> list[str]:
    """Complete the path of a recipe; folders too once the word looks like a path."""
    folder = Path(word if word.endswith("/") else word.rpartition("/")[0] or ".")
    if not folder.is_dir():
        return []
    base = word[: word.rfind("/") + 1]
    found = [f"{base}{path.name}" for path in folder.glob("*.yaml")]
    return found + ([f"{base}{path.name}/" for path in folder.iterdir() if path.is_dir()] if base else [])


def _keys(name: str, folders: list[Path], overrides: list[str], word: str) -> list[str]:
    """Ask Hydra, with the recipe and the overrides before the word in place."""
    from hydra import initialize_config_dir
    from hydra._internal.core_plugins.bash_completion import BashCompletion
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    from distillkit.app import prepare
    from distillkit.explain import EXPECTED

    prepare(folders)
    try:
        with initialize_config_dir(str(data_folder("configs")), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            line = " ".join([*overrides, word])
            found = BashCompletion(loader)._query(config_name=name, line=line)
            config = loader.load_configuration(name, overrides, run_mode=RunMode.MULTIRUN)
    except EXPECTED:  # what stands before does not compose: nothing to offer
        return []
    about_hydra = word.lstrip("+~").startswith("hydra")
    return [key for key in found if about_hydra or not key.lstrip("+~").startswith("hydra")] + _choices(config, word)


def _choices(config: DictConfig, word: str) -> list[str]:
    """Complete the value of a switch or of a key with a fixed set of values."""
    from omegaconf import BooleanNode, DictConfig, EnumNode, OmegaConf

    key, equals, _ = word.partition("=")
    path, _, last = key.rpartition(".")
    section = OmegaConf.select(config, path) if path else config
    node = section._get_node(last) if equals and isinstance(section, DictConfig) else None
    if isinstance(node, EnumNode):
        return [f"{key}={choice.name}" for choice in node.enum_type]
    return [f"{key}=true", f"{key}=false"] if isinstance(node, BooleanNode) else []

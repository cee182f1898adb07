"""dure completion: a script that completes verbs, options and names in a shell."""

# ruff: noqa: PLC0415 - all verbs are imported when this one runs, not for its --help

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Annotated

import typer

from dure.cli import console


class Shell(str, Enum):
    """Shells that are completed."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


def command(
    shell: Annotated[Shell, typer.Argument(metavar="bash|zsh|fish", help="The shell.")],
) -> None:
    """Print a script that completes verbs, their options, files, and the names of the catalogue
    and of presets.

    bash: `eval "$(dure completion bash)"` in ~/.bashrc; zsh: the same in ~/.zshrc, after
    compinit; fish: `dure completion fish > ~/.config/fish/completions/dure.fish`.
    """
    from dure import hub

    names = [entry.name for entry in hub.load_catalogue().entries]
    names += [preset.name for preset in hub.all_presets()]
    script = {Shell.bash: bash, Shell.zsh: zsh, Shell.fish: fish}[shell]
    console.write(script(_options(), names))


def _options() -> dict[str, list[str]]:
    """Map each verb to its long options."""
    from dure.cli import VERBS, build

    group = typer.main.get_command(build(list(VERBS)))
    verbs: Mapping[str, typer.core.TyperCommand] = group.commands  # type: ignore[attr-defined]
    return {
        verb: sorted(o for p in verbs[verb].params for o in p.opts if o.startswith("--"))
        for verb in VERBS
    }


def bash(options: Mapping[str, list[str]], names: list[str]) -> str:
    """Return the script for bash. A name holds a colon, which bash takes for a word's end."""
    cases = "\n".join(f'    {verb}) words="{" ".join(o)}" ;;' for verb, o in options.items())
    return f"""_dure() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} words="{" ".join(options)}"
  local names="{" ".join(names)}"
  _get_comp_words_by_ref -n : word 2>/dev/null
  if ((COMP_CWORD > 1)); then
    case ${{COMP_WORDS[1]}} in
{cases}
    *) words= ;;
    esac
    [[ $word != -* ]] && words=$names
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  __ltrim_colon_completions "$word" 2>/dev/null
}}
complete -o default -F _dure dure
"""


def zsh(options: Mapping[str, list[str]], names: list[str]) -> str:
    """Return the script for zsh."""
    cases = "\n".join(f"    {verb}) words=({' '.join(o)}) ;;" for verb, o in options.items())
    return f"""_dure() {{
  local -a words names
  names=({" ".join(f"'{name}'" for name in names)})
  if ((CURRENT == 2)); then
    compadd -- {" ".join(options)}
    return
  fi
  case ${{(Q)${{(z)BUFFER}}[2]}} in
{cases}
  esac
  if [[ $PREFIX == -* ]]; then
    compadd -- $words
  else
    compadd -- $names
    _files
  fi
}}
compdef _dure dure
"""


def fish(options: Mapping[str, list[str]], names: list[str]) -> str:
    """Return the script for fish."""
    lines = [f"complete -c dure -n __fish_use_subcommand -f -a '{' '.join(options)}'"]
    for verb, given in options.items():
        seen = f"__fish_seen_subcommand_from {verb}"
        lines += [f"complete -c dure -n '{seen}' -l {option[2:]}" for option in given]
    lines.append(f"complete -c dure -n 'not __fish_use_subcommand' -a '{' '.join(names)}'")
    return "\n".join(lines) + "\n"

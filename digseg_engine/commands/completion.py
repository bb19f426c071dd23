"""`digseg completion SHELL`: a script that completes commands, options and file names, made from the declarations."""

from __future__ import annotations

from digseg_engine.commands.declare import Command, Option


def run(shell: str) -> None:
    from digseg_engine.commands.main import NAMES, command_named

    flags = {name: " ".join(flag for option in command_named(name).all_options() if not option.positional
                            for flag in option.spellings if flag.startswith("--")) for name in NAMES}  # fmt: skip
    print(BUILDERS[shell](flags))


def _bash(flags: dict[str, str]) -> str:
    cases = "\n".join(f'    {name}) words="{known} --help" ;;' for name, known in flags.items())
    return f"""_digseg() {{
  local words current="${{COMP_WORDS[COMP_CWORD]}}"
  case "${{COMP_WORDS[1]}}" in
{cases}
    *) words="{" ".join(flags)} help --version" ;;
  esac
  [ "$COMP_CWORD" -gt 1 ] && [[ "$current" != -* ]] && words=""
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _digseg digseg"""


def _zsh(flags: dict[str, str]) -> str:
    return "autoload -U +X bashcompinit && bashcompinit\n" + _bash(flags)


def _fish(flags: dict[str, str]) -> str:
    lines = [f"complete -c digseg -n __fish_use_subcommand -f -a '{' '.join(flags)} help'"]
    lines += [f"complete -c digseg -n '__fish_seen_subcommand_from {name}' -l {flag.removeprefix('--')}"
              for name, known in flags.items() for flag in known.split()]  # fmt: skip
    return "\n".join(lines)


BUILDERS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
COMMAND = Command(
    name="completion",
    summary="Print a script that completes commands and options in your shell.",
    run=run,
    options=(Option("shell", "bash, zsh or fish", choices=tuple(BUILDERS), needed=True),),
    examples=("source <(digseg completion bash)", "digseg completion fish > ~/.config/fish/completions/digseg.fish"),
)

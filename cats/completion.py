"""``cats completion``: what a shell needs to complete the commands of the toolkit, as typer writes it."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer
from typer.completion import get_completion_script

from cats.cli import SCRIPTS
from cats.core.console import execute, new_app

app = new_app()


class Shell(str, Enum):
    """Shells that typer knows and that run where the toolkit does."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


EXAMPLES = """
Examples:

- `cats completion bash > ~/.cats-completion; echo ". ~/.cats-completion" >> ~/.bashrc`

- `cats completion zsh > ~/.cats-completion; echo ". ~/.cats-completion" >> ~/.zshrc` below compinit

- `cats completion fish > ~/.config/fish/conf.d/cats.fish`
"""


def completion_script(shell: str) -> str:
    """What the shell reads to complete ``cats`` and every ``cats-*``."""
    names = ["cats", *(f"cats-{name}" for name in SCRIPTS)]
    scripts = [
        get_completion_script(
            prog_name=name, complete_var=f"_{name.upper().replace('-', '_')}_COMPLETE", shell=shell
        ).removeprefix(f"#compdef {name}\n")
        for name in names
    ]
    return "\n".join(scripts) + "\n"


@app.command(name="completion", epilog=EXAMPLES)
def main_command(shell: Annotated[Shell, typer.Argument(help="Which shell.", metavar="bash|zsh|fish")]) -> None:
    """Print what makes a shell complete commands and options; once, into a file that it reads when it starts."""
    typer.echo(completion_script(shell.value), nl=False)


def main() -> None:
    """Entry point of ``python -m cats.completion``."""
    execute(app)


if __name__ == "__main__":
    main()

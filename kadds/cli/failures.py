"""How a command ends badly: what happened, where, what to do, once, and the exit code.

0 done, 1 failed while running, 2 configuration or usage. A traceback is shown where KADDS_DEBUG is set.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from kadds.api.errors import ConfigurationError, KaddsError

FAILED = 1
WRONG = 2


def exit_code(error: BaseException) -> int:
    """The exit code that an error means."""
    return WRONG if isinstance(error, ConfigurationError) else FAILED


def tell(error: BaseException) -> None:
    """Print an error for a person, to standard error."""
    if isinstance(error, KaddsError):
        text = str(error)
    else:
        text = (
            f"a defect in Kadds: {type(error).__name__}: {error}\n  hint: KADDS_DEBUG=1 shows where; please report it"
        )
    click.echo(click.style("error: ", fg="red") + text, err=True)


def debugging() -> bool:
    """Whether a traceback is wanted."""
    return os.environ.get("KADDS_DEBUG", "") not in ("", "0")


class Commands(click.Group):
    """A group at the top: what its commands raise ends here, and nowhere else."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; KaddsErrors and defects become a message and an exit code."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if debugging():
                raise
            sys.stdout.flush()
            tell(error)
            ctx.exit(exit_code(error))

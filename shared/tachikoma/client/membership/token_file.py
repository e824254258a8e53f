"""Reading a token: from a file, from standard input, or typed without an echo. It is never an argument.

The arguments of a program are visible to every user of the host.
"""

from __future__ import annotations

import getpass
import sys
from pathlib import Path

from tachikoma.errors import ConfigurationError
from tachikoma.identity.join_token import JoinToken

__all__ = ["read_token"]


def read_token(source: str, prompt: str = "") -> JoinToken:
    """Read a token from a file, or from standard input for `-`.

    The errors do not contain the file's name: it may be a token that was passed instead of one.

    Args:
        source: path of the file, or `-`.
        prompt: text to ask for the token with, if standard input is a terminal; empty to read it as a file.

    Raises:
        ConfigurationError: the file cannot be read, or contains no token.
        InvalidRequest: the text is not a token.
    """
    try:
        if source != "-":
            text = Path(source).read_text(encoding="ascii")
        elif prompt and sys.stdin.isatty():
            text = getpass.getpass(prompt)
        else:
            text = sys.stdin.read()
    except UnicodeDecodeError:
        raise ConfigurationError("the file of --token-file contains no token") from None
    except OSError as error:
        raise ConfigurationError(f"cannot read the file of --token-file: {error.strerror}") from None
    return JoinToken.parse(text)

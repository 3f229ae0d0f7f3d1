"""The one error that is the user's to mend."""

from __future__ import annotations


class ReciproError(Exception):
    """Something the user can mend: a bad file, an unknown layer, a device that is not there.

    The message is one line that says what is wrong and, where it can, what to do. The command line
    prints it without a traceback and exits with 1.
    """

"""Errors that end a command with one line and an exit code."""


class UsageError(ValueError):
    """A mistake in the user's recipe, data or arguments, told in one line a problem. Commands end with exit code 2."""


class Failure(Exception):
    """An end that is not the user's mistake, told in plain words, with its exit code. What only one process knows
    (`alone`) is told by that process, everything else by the first of each machine."""

    def __init__(self, message, code, alone=False):
        super().__init__(message)
        self.code, self.alone = code, alone

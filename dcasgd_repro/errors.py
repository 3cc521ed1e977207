"""The one exception that means: the input is at fault, and a person can mend it."""

from __future__ import annotations


class BadInput(ValueError):
    """Input refused: ``key=value: remedy``, in one line.

    The command line prints it without a traceback and exits with code 2. ``key`` is the name the
    reader typed or can type (``lam0``, ``workers``, a file's path); ``remedy`` says what would be
    accepted.
    """

    def __init__(self, key: str, value: object, remedy: str) -> None:
        super().__init__(f"{key}={value!s}: {remedy}")
        self.key, self.value, self.remedy = key, value, remedy

    def __reduce__(self) -> tuple[type[BadInput], tuple[str, object, str]]:
        # Exceptions are pickled by their message alone, which is not what __init__ takes.
        return BadInput, (self.key, self.value, self.remedy)

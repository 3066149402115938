"""The base of every error that a user can cause: its text is one line, shown as it is."""


class KeigoError(Exception):
    """Something that the user can set right; the text says what and where."""

"""Errors about data that a user can act on."""


class DataError(ValueError):
    """A file or record that cannot be used; the message names it and the remedy."""

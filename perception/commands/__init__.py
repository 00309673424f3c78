"""One file per verb of the ``bevstack`` command; its function's arguments are the options."""

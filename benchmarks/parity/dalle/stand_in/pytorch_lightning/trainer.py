"""Never used."""


class Trainer:
    """Never made."""

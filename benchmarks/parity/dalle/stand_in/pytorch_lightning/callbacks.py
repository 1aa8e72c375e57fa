"""Never used."""


class Callback:
    """Never made."""


ModelCheckpoint = LearningRateMonitor = Callback

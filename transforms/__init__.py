"""What a model needs of a sample: pure functions of images and captions."""

__all__: list[str] = []

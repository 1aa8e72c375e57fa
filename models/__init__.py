"""Networks, and loading them."""

__all__: list[str] = []

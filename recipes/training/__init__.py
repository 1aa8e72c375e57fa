"""What training recipes share: ranks, gradients, checkpoints, and what a run tells of itself."""

__all__: list[str] = []

"""penstock feeds text-to-image training."""

"""Compute latents and text embeddings once, before training.

    python -m penstock.recipes.cache --config cache.yaml
    python -m penstock.recipes.cache --data.url photographs --model path/or/hub-id --out cache
    torchrun --nproc_per_node 8 -m penstock.recipes.cache --config cache.yaml

``data`` is the part of the config that the training recipe has too: the same images, crops, flips
and captions. All variants of them are computed, so that training finds every one. What is there
already is left as it is: the run can be killed at any moment and started again, on any number of
processes, and after adding images or changing a caption only what is new is computed.
"""

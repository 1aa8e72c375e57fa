"""Under FSDP2 on two processes, what is saved is the whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from penstock.models import add_lora, load_transformer, save_lora, save_transformer

CODE = """
import sys
import torch
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.fsdp import fully_shard
from penstock.models import add_lora, load_transformer, save_lora, save_transformer

rank, (tiny, out, store) = int(sys.argv[1]), sys.argv[2:]
init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
for kind in ("lora", "whole"):
    model = load_transformer(tiny, dtype=torch.float32)
    if kind == "lora":
        add_lora(model, rank=4, alpha=2)
    for block in (*model.transformer_blocks, *model.single_transformer_blocks):
        fully_shard(block)
    fully_shard(model)
    if kind == "lora":
        save_lora(model, f"{out}/lora", write=rank == 0)
    else:
        save_transformer(model, f"{out}/whole", dtype=torch.float32, write=rank == 0)
destroy_process_group()
"""


@pytest.mark.slow
def test_each_tensor_is_gathered(tiny, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / ".dev")}
    env |= {"OMP_NUM_THREADS": "1"}
    arguments = [str(tiny), str(tmp_path), str(tmp_path / "store")]
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", CODE, str(rank), *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        for rank in (0, 1)
    ]
    errors = [run.communicate(timeout=300)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], errors
    model = load_transformer(tiny, dtype=torch.float32)
    whole = load_transformer(tmp_path / "whole", dtype=torch.float32).state_dict()
    assert all(torch.equal(whole[n], t) for n, t in model.state_dict().items())
    assert save_transformer(model, tmp_path / "alone").is_dir()
    add_lora(model, rank=4, alpha=2)
    expected = load_file(save_lora(model, tmp_path / "alone"))
    found = load_file(tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n], t) for n, t in expected.items())

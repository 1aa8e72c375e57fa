"""Which files hold weights, and whether they are whole."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from penstock.models import find_part, tensors

KINDS = ("FluxTransformer2DModel",)


def find(path, **more):
    return find_part(path, "transformer", KINDS, **more)


def test_headers_tell_what_files_hold(tiny):
    part = find(tiny)
    assert part.folder == tiny / "transformer"
    assert part.config["guidance_embeds"] is True
    (file,) = part.files
    state = load_file(file)
    assert tensors(file) == {n: ("F32", tuple(t.shape)) for n, t in state.items()}
    assert part.parameters == sum(t.numel() for t in state.values())
    assert find(tiny / "transformer") == part  # the part's own folder
    assert find(str(tiny)) == part


def test_several_files(broken):
    folder = broken / "transformer"
    (file,) = find(broken).files
    state = load_file(file)
    names = sorted(state)
    file.unlink()
    for i, some in enumerate((names[::2], names[1::2])):
        save_file({n: state[n] for n in some}, folder / f"part-{i}.safetensors")
    places = {n: f"part-{i % 2}.safetensors" for i, n in enumerate(names)}
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    part = find(broken)
    assert [f.name for f in part.files] == ["part-0.safetensors", "part-1.safetensors"]
    assert part.parameters == sum(t.numel() for t in state.values())
    (folder / "part-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="lacks part-1.safetensors, which"):
        find(broken)
    index.write_text(json.dumps({"weight_map": {"x": "../vae/x.safetensors"}}))
    with pytest.raises(ValueError, match="outside of its folder"):
        find(broken)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        find(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"config.json: a checkpoint as diffusers"):
        find(tmp_path)
    (tmp_path / "flux1-dev.safetensors").write_bytes(b"")
    with pytest.raises(NotADirectoryError, match="is a file: give the folder"):
        find(tmp_path / "flux1-dev.safetensors")


def test_a_hub_that_asks_nobody(monkeypatch):
    with pytest.raises(OSError, match="neither a folder here nor to be had"):
        find("nobody/nothing-of-this-name", local_files_only=True)


def test_the_hub_gives_safetensors_alone(tiny, monkeypatch):
    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(tiny)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert find("owner/model", revision="abc").folder == tiny / "transformer"
    assert asked["name"] == "owner/model"
    assert asked["revision"] == "abc"
    assert asked["allow_patterns"] == [
        *("transformer/*.json", "transformer/*.safetensors", "model_index.json")
    ]


def test_another_model(tiny):
    with pytest.raises(ValueError, match="holds a AutoencoderKL; expected FluxTransformer2DModel"):
        find(tiny / "vae")


def test_weights_that_are_no_safetensors(broken):
    (file,) = find(broken).files
    whole = file.read_bytes()
    for size in (0, 4, 100, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(OSError, match=f"{file.name}.*fetch it anew"):
            find(broken)
    file.write_bytes(whole + b"more")
    with pytest.raises(OSError, match="header tells of"):
        find(broken)
    for header in (b"[1]", b"{}x", b'{"a": 1}', b'{"a": {"dtype": "F32", "shape": 3}}'):
        file.write_bytes(len(header).to_bytes(8, "little") + header)
        with pytest.raises(OSError, match="its header is damaged"):
            find(broken)
    file.unlink()
    torch.save({}, file.with_suffix(".bin"))
    with pytest.raises(ValueError, match="as a pickle alone"):
        find(broken)
    file.with_suffix(".bin").unlink()
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        find(broken)


def test_a_config_that_is_no_json(broken):
    path = broken / "transformer" / "config.json"
    path.write_text("{")
    with pytest.raises(OSError, match="config.json is no JSON"):
        find(broken)
    path.write_text("[]")
    with pytest.raises(OSError, match="must hold a JSON object, got list"):
        find(broken)

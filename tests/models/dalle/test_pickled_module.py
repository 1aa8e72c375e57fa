"""Files that hold objects are read without making them."""

import builtins
import os
import pickle
import zipfile

import pytest
import torch
from torch import nn

from penstock.models.dalle.pickled_module import Husk, load_husks, module_weights

NAMES = ("torch.nn.modules.container.Sequential", "torch.nn.modules.linear.Linear")


def test_weights_of_a_module(tmp_path):
    path = tmp_path / "a.pkl"
    model = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 1)))
    torch.save(model, path)
    found = load_husks(path, NAMES)
    assert isinstance(found, Husk)
    weights = module_weights(found, path)
    expected = model.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[k], expected[k]) for k in weights)


def test_other_classes_are_refused(tmp_path):
    path = tmp_path / "a.pkl"
    torch.save(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), path)
    with pytest.raises(ValueError, match="(?s)a.pkl cannot be read safely: .*ReLU"):
        load_husks(path, NAMES)


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["PENSTOCK_TEST_EVIL"],)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_nothing_is_executed(tmp_path, monkeypatch, how):
    monkeypatch.setenv("PENSTOCK_TEST_EVIL", str(tmp_path / "evil"))
    path = tmp_path / "a.pkl"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Evil(), protocol=2))
    else:
        torch.save([Evil()], path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(ValueError, match="cannot be read safely"):
        load_husks(path, NAMES)
    assert not (tmp_path / "evil").exists()


def test_a_husk_has_no_methods_of_its_class(tmp_path):
    path = tmp_path / "a.pkl"
    torch.save(nn.Linear(2, 3), path)
    found = load_husks(path, NAMES)
    assert not callable(found)
    assert type(found).__mro__[1:] == (Husk, builtins.object)


def test_the_list_is_for_one_file_alone(tmp_path):
    path = tmp_path / "a.pkl"
    torch.save(nn.Linear(2, 3), path)
    load_husks(path, NAMES)
    with pytest.raises(ValueError, match="Linear"):
        load_husks(path, ())


def test_no_file_of_torch(tmp_path):
    path = tmp_path / "a.pkl"
    for data in (b"", b"nothing", b"PK\x03\x04"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="cannot be read safely"):
            load_husks(path, NAMES)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x", "y")
    with pytest.raises(ValueError, match="cannot be read safely"):
        load_husks(path, NAMES)


def test_no_module(tmp_path):
    with pytest.raises(ValueError, match="holds no module, but dict"):
        module_weights({}, tmp_path)

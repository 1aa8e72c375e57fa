import pytest

from penstock.transforms.model_transform import drop_chances


def test_chances_go_to_their_encoders():
    assert drop_chances(None, "clip", "t5") == {"clip": 0.0, "t5": 0.0}
    assert drop_chances({"t5": 0.1}, "clip", "t5") == {"clip": 0.0, "t5": 0.1}
    for drop in ({"clip": 0.1, "t6": 0.1}, 0.1, ["clip"]):
        with pytest.raises(ValueError, match=r"for some of \['clip', 't5'\].*\.drop_caption"):
            drop_chances(drop, "clip", "t5")

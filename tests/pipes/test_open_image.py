import io
import threading
import warnings

import pytest
from PIL import Image

from penstock.pipes.errors import DataError
from penstock.pipes.open_image import open_image, quiet, reading


@pytest.fixture
def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 10), "red").save(file, "PNG")
    return file.getvalue()


def test_opens_what_pillow_knows_by_its_first_bytes(png):
    image = open_image(png)
    assert (image.format, image.size) == ("PNG", (20, 10))
    with pytest.raises(DataError, match="begins with b'nothing'"):
        open_image(b"nothing")


def test_pillows_limit_is_neither_used_nor_changed(png, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    open_image(png).load()
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize(
    "error", [OSError("x"), SyntaxError("x"), ValueError("x"), KeyError("x"), RuntimeError()]
)
def test_whatever_a_decoder_raises_is_a_data_error(error):
    with pytest.raises(DataError, match=r"cannot be decoded: .*(x|RuntimeError)"), reading():
        raise error


def test_what_is_not_the_datas_fault_stays():
    with pytest.raises(MemoryError), reading():
        raise MemoryError
    with pytest.raises(DataError, match=r"^mine$"), reading():
        raise DataError("mine")
    with pytest.raises(DataError, match=r"PIL\.Image\.MAX_IMAGE_PIXELS"), reading():
        raise Image.DecompressionBombError("too large.")


def test_quiet_silences_pillow_alone_and_leaves_the_filters():
    before = list(warnings.filters)
    with quiet():
        warnings.warn_explicit("odd", UserWarning, "PngImagePlugin.py", 1, "PIL.PngImagePlugin")
        with pytest.raises(UserWarning):
            warnings.warn_explicit("theirs", UserWarning, "theirs.py", 1, "theirs")
    assert warnings.filters == before
    with pytest.raises(UserWarning):
        warnings.warn_explicit("odd", UserWarning, "PngImagePlugin.py", 1, "PIL.PngImagePlugin")


def test_overlapping_threads_leave_the_filters():
    before = list(warnings.filters)
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with quiet():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with quiet():
        thread.start()
        entered.wait(10)
    leave.set()
    thread.join()
    assert warnings.filters == before

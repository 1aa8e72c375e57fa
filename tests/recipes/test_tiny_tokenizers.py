import os
import subprocess
import sys
from pathlib import Path

from transformers import CLIPTokenizer, T5TokenizerFast

import penstock.recipes
from penstock.recipes.make_shapes import COLOURS, PLACES, SCALES, SHAPES, shape_samples
from penstock.recipes.tiny_tokenizers import tiny_clip_tokenizer, tiny_t5_tokenizer
from penstock.transforms.fast_tokenizer import FastTokenizer


def test_they_know_the_words_of_the_shapes():
    clip, t5 = tiny_clip_tokenizer(), tiny_t5_tokenizer()
    for word in [*COLOURS, *SHAPES, " ".join(PLACES), *SCALES]:
        count = len(word.replace("-", " - ").split())
        assert len(clip(word)["input_ids"]) == count + 2
    assert len(t5("a red circle")["input_ids"]) == 4
    for sample in shape_samples(20):
        text = sample["txt"].decode()
        assert t5.unk_token_id not in t5(text)["input_ids"]
        assert clip.decode(clip(text)["input_ids"], skip_special_tokens=True).replace(" ", "") == (
            text.replace(" ", "")
        )


def test_any_other_text_is_spelled():
    clip, t5 = tiny_clip_tokenizer(), tiny_t5_tokenizer()
    text = "zwölf ☃ Zeppelins"
    assert clip.decode(clip(text)["input_ids"], skip_special_tokens=True).strip() == text.lower()
    assert "Zeppelins" in t5.decode(t5(text)["input_ids"])


def test_special_tokens_are_the_models(tmp_path):
    clip, big, t5 = tiny_clip_tokenizer(), tiny_clip_tokenizer(pad_token="!"), tiny_t5_tokenizer()
    assert type(clip) is CLIPTokenizer
    assert type(t5) is T5TokenizerFast
    assert clip.pad_token_id == clip.eos_token_id == len(clip) - 1
    assert clip.bos_token_id == len(clip) - 2
    assert (big.pad_token, big.pad_token_id) == ("!", 0)
    assert (t5.pad_token_id, t5.eos_token_id, t5.unk_token_id) == (0, 1, 2)
    assert (clip.model_max_length, t5.model_max_length) == (77, 512)
    for made in (clip, big, t5):
        made.save_pretrained(tmp_path)
        again = type(made).from_pretrained(tmp_path)
        assert again("a red Zeppelin!")["input_ids"] == made("a red Zeppelin!")["input_ids"]
        assert again.pad_token_id == made.pad_token_id


def test_they_are_the_same_in_every_process():
    code = (
        "from penstock.recipes.tiny_tokenizers import *\n"
        "from penstock.transforms.fast_tokenizer import FastTokenizer\n"
        "for t in (tiny_clip_tokenizer(), tiny_t5_tokenizer()):\n"
        "    print(FastTokenizer(t, 20).digest)"
    )
    root = Path(penstock.recipes.__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root), "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True
    )
    own = [FastTokenizer(t, 20).digest for t in (tiny_clip_tokenizer(), tiny_t5_tokenizer())]
    assert done.stdout.split() == own

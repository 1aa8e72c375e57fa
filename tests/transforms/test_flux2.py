"""FLUX.2's tokens are those that diffusers feeds, by the checkpoint's own chat template."""

import json
import pickle

import numpy as np
import pytest
import torch

from penstock.transforms import Flux2Transform, normalize_image

MISTRAL = """{{ bos_token }}{% for message in messages %}
{%- if message['role'] == 'system' %}[SYSTEM_PROMPT]
{{- message['content'][0]['text'] }}[/SYSTEM_PROMPT]
{%- else %}[INST]{% for part in message['content'] %}
{%- if part['type'] == 'text' %}{{ part['text'] }}{% else %}[IMG]{% endif %}{% endfor %}[/INST]
{%- endif %}{% endfor %}"""
QWEN = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}
{{- message['content'] + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}
{%- endif %}{% endif %}"""
TRIMMING = MISTRAL.replace("part['text']", "part['text'] | trim | upper")
SPECIAL = [
    *("<unk>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
    *("[IMG]", "[IMG_BREAK]", "[IMG_END]", "<|im_start|>", "<|im_end|>", "<think>", "</think>"),
]


def chat_tokenizer(template, *, bos="<s>", add_bos=True, **more):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(SPECIAL)
    if add_bos:
        made.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=bos,
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        chat_template=template,
        **more,
    )


def processor(tokenizer, template):
    from transformers import PixtralImageProcessor, PixtralProcessor

    return PixtralProcessor(PixtralImageProcessor(), tokenizer, chat_template=template)


class Encoder(torch.nn.Module):
    """Stands in for a language model: keeps what it is given."""

    dtype = torch.float32
    device = torch.device("cpu")

    def forward(self, input_ids, attention_mask, output_hidden_states, use_cache):
        self.given = input_ids, attention_mask
        hidden = [torch.zeros(*input_ids.shape, 1)] * 31
        return type("Out", (), {"hidden_states": hidden})()


@pytest.fixture(scope="module")
def texts(captions):
    return [*captions, "a [IMG] b", "[INST] {{ x }} [/INST]", " <|im_end|>\n", "ends in space "]


def check(out, given):
    assert torch.equal(out["text_tokens"], given[0])
    assert torch.equal(out["text_attention_mask"], given[1])


@pytest.mark.parametrize("template", [MISTRAL, TRIMMING, MISTRAL.replace("{{ bos_token }}", "")])
@pytest.mark.parametrize("side", ["left", "right"])
def test_dev_is_diffusers(texts, make_batch_of, template, side):
    from diffusers import Flux2Pipeline

    tokenizer = chat_tokenizer(None, padding_side=side)
    mistral = processor(tokenizer, template)
    encoder = Encoder()
    Flux2Pipeline._get_mistral_3_small_prompt_embeds(encoder, mistral, texts)
    batch = make_batch_of(texts)
    out = Flux2Transform(mistral)(batch)
    check(out, encoder.given)
    assert out["text_tokens"].shape == (len(texts), 512)
    assert (out["text_tokens"] == 1).sum(1).tolist() == [1] * len(texts)
    assert torch.equal(out["image"], normalize_image(batch["image"]))
    assert set(out) == {*batch, "text_tokens", "text_attention_mask", "text_cut"}
    # The tokenizer alone, with the template in it, gives the same.
    own = Flux2Transform(chat_tokenizer(template, padding_side=side))
    assert torch.equal(own(batch)["text_tokens"], out["text_tokens"])


@pytest.mark.parametrize("add_bos", [True, False])
def test_klein_is_diffusers(texts, make_batch_of, add_bos):
    from diffusers import Flux2KleinPipeline

    qwen = chat_tokenizer(QWEN, add_bos=add_bos)
    encoder = Encoder()
    Flux2KleinPipeline._get_qwen3_prompt_embeds(encoder, qwen, texts)
    check(Flux2Transform(qwen, variant="klein")(make_batch_of(texts)), encoder.given)


def test_the_system_message_is_diffusers():
    from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE

    from penstock.transforms import flux2

    assert flux2.SYSTEM_MESSAGE == SYSTEM_MESSAGE


def test_the_digest_tells_templates_apart():
    made = [Flux2Transform(chat_tokenizer(t)).encoders[0] for t in (MISTRAL, TRIMMING, MISTRAL)]
    assert made[0].tokens.digest == made[2].tokens.digest != made[1].tokens.digest


def test_what_is_cut_is_counted(make_batch_of):
    made = Flux2Transform(chat_tokenizer(MISTRAL))
    short, long = made(make_batch_of(["a", "a" + "b" * 900]))["text_cut"].tolist()
    assert short == 0
    length = made(make_batch_of(["a"]))["text_attention_mask"].sum().item()
    assert long == length + 900 - 512


def test_dropped_captions_are_empty_ones(make_batch_of, rng):
    made = Flux2Transform(chat_tokenizer(MISTRAL), drop=0.5)
    out = made(make_batch_of(["a ring"] * 40, 16, 16), rng)
    empty = Flux2Transform(chat_tokenizer(MISTRAL))(make_batch_of([""], 16, 16))["text_tokens"]
    assert torch.equal(out["text_tokens"].eq(empty).all(1), out["text_dropped"])
    assert 5 < out["text_dropped"].sum() < 35


def test_it_pickles(texts, make_batch_of):
    made = Flux2Transform(processor(chat_tokenizer(None), MISTRAL), drop=0.5)
    outs = [
        t(make_batch_of(texts), np.random.Generator(np.random.Philox(key=2)))
        for t in (made, pickle.loads(pickle.dumps(made)))
    ]
    assert torch.equal(outs[0]["text_tokens"], outs[1]["text_tokens"])


@pytest.mark.parametrize(
    ("name", "variant"), [("Flux2Pipeline", "dev"), ("Flux2KleinPipeline", "klein")]
)
def test_from_pretrained(tmp_path, texts, make_batch_of, name, variant):
    import diffusers

    assert hasattr(diffusers, name)
    tokenizer = chat_tokenizer(MISTRAL if variant == "dev" else QWEN, padding_side="left")
    if variant == "dev":
        processor(tokenizer, MISTRAL).save_pretrained(tmp_path / "tokenizer")
    else:
        tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=r"names no pipeline of FLUX\.2 .*give variant="):
        Flux2Transform.from_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    made = Flux2Transform.from_pretrained(tmp_path)
    assert made.variant == variant
    batch = make_batch_of(texts)
    own = Flux2Transform(tokenizer, variant=variant)
    assert torch.equal(made(batch)["text_tokens"], own(batch)["text_tokens"])


def test_bad_arguments_are_refused(tmp_path, make_batch_of):
    with pytest.raises(ValueError, match="has no chat template"):
        Flux2Transform(chat_tokenizer(None))
    with pytest.raises(ValueError, match="variant must be 'dev' or 'klein', got 'pro'"):
        Flux2Transform(chat_tokenizer(MISTRAL), variant="pro")
    with pytest.raises(FileNotFoundError, match=r"it needs tokenizer\.json"):
        Flux2Transform.from_pretrained(tmp_path, variant="dev")
    with pytest.raises(ValueError, match=r"FLUX\.2 takes sides that are multiples of 16"):
        Flux2Transform(chat_tokenizer(MISTRAL))(make_batch_of(["a"], 24, 16))
    with pytest.raises(ValueError, match="sample '0000' of shards/00000.tar: its caption is no"):
        Flux2Transform(chat_tokenizer(MISTRAL))(make_batch_of(["a \ud800"]))

"""Text encoders give what diffusers' pipelines feed their transformers, bit for bit."""

from types import SimpleNamespace

import pytest
import torch

from penstock.recipes.tiny_flux import tiny_flux_pipeline
from penstock.transforms import TextEncoder, sd3_prompt_embeds
from penstock.transforms.flux2 import SYSTEM_MESSAGE, ChatTokenize
from penstock.transforms.tokenize import ClipTokenize

QWEN = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}
{{- message['content'] + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}
{%- endif %}{% endif %}"""
MISTRAL = """{{ bos_token }}{% for message in messages %}
{%- if message['role'] == 'system' %}[SYSTEM_PROMPT]
{{- message['content'][0]['text'] }}[/SYSTEM_PROMPT]
{%- else %}[INST]{{ message['content'][0]['text'] }}[/INST]{%- endif %}{% endfor %}"""
SPECIAL = [
    *("<unk>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
    *("<|im_start|>", "<|im_end|>", "<think>", "</think>"),
]


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    from diffusers.utils import logging
    from transformers.utils import logging as transformers_logging

    logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()


@pytest.fixture(autouse=True)
def _as_pipelines_run():
    with torch.no_grad():  # with gradients, attention takes other kernels, and other last bits
        yield


@pytest.fixture(scope="module")
def flux():
    return tiny_flux_pipeline()


@pytest.fixture(scope="module")
def clip_g_model(clip_g):
    return projected(clip_g, 16, 1)


def projected(tokenizer, width, seed):
    """Return a tiny CLIPTextModelWithProjection."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=width,
                intermediate_size=width,
                num_hidden_layers=3,
                num_attention_heads=2,
                projection_dim=width,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        ).eval()


def chat_tokenizer(template, **more):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        chat_template=template,
        **more,
    )


def causal(kind, tokenizer, layers):
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(2)
        config = getattr(transformers, f"{kind}Config")(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=4,
        )
        return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def run(encoder, captions):
    tokens = encoder.tokens.tokens(encoder.tokens.texts(captions))
    return encoder.encode(tokens.ids, tokens.attention_mask)


def same(one, two):
    assert one.dtype == two.dtype
    assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flux(flux, captions, dtype):
    clip = TextEncoder.flux_clip(flux.text_encoder, flux.tokenizer, dtype=dtype)
    made = run(clip, captions)
    assert list(made) == ["pooled"]
    same(made["pooled"], flux._get_clip_prompt_embeds(captions).to(dtype))
    for variant, length in (("dev", 512), ("schnell", 256)):
        t5 = TextEncoder.flux_t5(
            flux.text_encoder_2, flux.tokenizer_2, variant=variant, dtype=dtype
        )
        made = run(t5, captions)
        assert list(made) == ["embeds"]
        expected = flux._get_t5_prompt_embeds(captions, max_sequence_length=length)
        same(made["embeds"], expected.to(dtype))
        assert made["embeds"].shape == (len(captions), length, 32)


def test_sdxl(flux, clip, clip_g, clip_g_model, captions):
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline(
        None, flux.text_encoder, clip_g_model, clip, clip_g, None, None
    )
    embeds, _, pooled, _ = pipe.encode_prompt(
        captions, device="cpu", do_classifier_free_guidance=False
    )
    one = run(TextEncoder.sdxl_clip(flux.text_encoder, clip, dtype=None), captions)
    two = run(TextEncoder.sdxl_clip(clip_g_model, clip_g, dtype=None), captions)
    assert list(one) == ["embeds"]
    same(torch.cat([one["embeds"], two["embeds"]], -1), embeds)
    same(two["pooled"], pooled)


def test_sd3(flux, clip, clip_g, clip_g_model, captions):
    from diffusers import StableDiffusion3Pipeline

    model_l = projected(clip, 16, 3)
    given = (model_l, clip, clip_g_model, clip_g, flux.text_encoder_2, flux.tokenizer_2)
    pipe = StableDiffusion3Pipeline(None, None, None, *given)
    embeds, _, pooled, _ = pipe.encode_prompt(
        captions, None, None, device="cpu", do_classifier_free_guidance=False
    )
    one, two = (
        run(TextEncoder.sdxl_clip(model, tokenizer, dtype=None), captions)
        for model, tokenizer in ((model_l, clip), (clip_g_model, clip_g))
    )
    t5 = run(TextEncoder.sd3_t5(flux.text_encoder_2, flux.tokenizer_2, dtype=None), captions)
    same(sd3_prompt_embeds(one["embeds"], two["embeds"], t5["embeds"]), embeds)
    same(torch.cat([one["pooled"], two["pooled"]], -1), pooled)


def test_pixart(flux, captions):
    from diffusers import PixArtSigmaPipeline

    plain = [caption.lower().strip() for caption in captions]
    pipe = SimpleNamespace(
        tokenizer=flux.tokenizer_2,
        text_encoder=flux.text_encoder_2,
        _execution_device="cpu",
        _text_preprocessing=lambda text, clean_caption: text,
    )
    embeds, mask, *_ = PixArtSigmaPipeline.encode_prompt(
        pipe, plain, do_classifier_free_guidance=False, device="cpu"
    )
    encoder = TextEncoder.pixart_t5(flux.text_encoder_2, flux.tokenizer_2, dtype=None)
    same(run(encoder, plain)["embeds"], embeds)
    assert torch.equal(encoder.tokens.tokens(plain).attention_mask, mask)
    ignored = TextEncoder.sd3_t5(flux.text_encoder_2, flux.tokenizer_2, dtype=None, max_length=300)
    assert not torch.equal(run(ignored, plain)["embeds"], embeds)


@pytest.mark.slow
def test_flux2_klein(captions):
    from diffusers import Flux2KleinPipeline

    tokenizer = chat_tokenizer(QWEN)
    model = causal("Qwen3", tokenizer, 28)
    encoder = TextEncoder.flux2(model, tokenizer, variant="klein", dtype=None)
    expected = Flux2KleinPipeline._get_qwen3_prompt_embeds(model, tokenizer, captions[:5])
    made = run(encoder, captions[:5])["embeds"]
    same(made, expected)
    assert made.shape == (5, 512, 3 * 8)
    assert encoder.about["outputs"] == {"embeds": "hidden_states[9, 18, 27]"}


@pytest.mark.slow
def test_flux2_dev(captions):
    from diffusers import Flux2Pipeline
    from transformers import PixtralImageProcessor, PixtralProcessor

    tokenizer = chat_tokenizer(MISTRAL, padding_side="left")
    processor = PixtralProcessor(PixtralImageProcessor(), tokenizer, chat_template=MISTRAL)
    model = causal("Mistral", tokenizer, 31)
    encoder = TextEncoder.flux2(model, processor, variant="dev", dtype=None)
    expected = Flux2Pipeline._get_mistral_3_small_prompt_embeds(
        model, processor, captions[:5], system_message=SYSTEM_MESSAGE
    )
    same(run(encoder, captions[:5])["embeds"], expected)


def test_zeroed_padding_is_zero_and_tokens_are_as_without_a_mask(flux, captions):
    model, tokenizer = flux.text_encoder_2, flux.tokenizer_2
    kept, zeroed = (
        TextEncoder(
            model, tokenizer, max_length=64, output="last_hidden_state", mask=mask, dtype=None
        )
        for mask in ("ignored", "zeroed")
    )
    mask = kept.tokens.tokens(captions).attention_mask[..., None].bool()
    one, two = run(kept, captions)["embeds"], run(zeroed, captions)["embeds"]
    assert not (one * ~mask).eq(0).all()
    same(two, one * mask)


def test_max_batch_changes_nothing(flux, captions):
    whole, parts = (
        TextEncoder.flux_t5(flux.text_encoder_2, flux.tokenizer_2, max_length=40, max_batch=n)
        for n in (100, 3)
    )
    calls = []
    flux.text_encoder_2.register_forward_hook(lambda *_: calls.append(1))
    expected = run(whole, captions)["embeds"]
    assert len(calls) == 1
    same(run(parts, captions)["embeds"], expected)
    assert len(calls) == 1 + -(-len(captions) // 3)
    assert parts.about == whole.about


def test_without_gradients_or_autocast(flux, captions):
    encoder = TextEncoder.flux_t5(flux.text_encoder_2, flux.tokenizer_2, max_length=16, dtype=None)
    expected = run(encoder, captions)["embeds"]
    with torch.enable_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        made = run(encoder, captions)["embeds"]
    same(made, expected)
    assert not made.requires_grad


def test_a_function(t5, captions):
    def embed(ids, mask):
        assert mask is None
        return {"long": torch.stack([ids, ids + 1], -1).float(), "short": ids[:, :2].float()}

    encoder = TextEncoder(embed, t5, max_length=8, fingerprint="one")
    made = run(encoder, captions)
    ids = encoder.tokens.tokens(captions).ids
    assert torch.equal(made["long"][..., 0], ids.bfloat16())
    assert made["short"].shape == (len(captions), 2)
    assert encoder.about["weights"] == "one"
    masked = TextEncoder(
        lambda ids, mask: (ids * mask)[..., None].float(),
        t5,
        max_length=8,
        mask="both",
        fingerprint="x",
    )
    assert list(run(masked, captions)) == ["embeds"]


def abouts(flux, clip):
    """Yield encoders' abouts, each different from the first in one thing."""
    model, tokenizer = flux.text_encoder_2, flux.tokenizer_2
    base = {"max_length": 16, "output": "last_hidden_state"}

    def about(**more):
        given = {"model": model, "tokenizer": tokenizer, **base, **more}
        return TextEncoder(given.pop("model"), given.pop("tokenizer"), **given).about

    yield about()
    yield about(max_length=17)
    yield about(mask="encoder")
    yield about(mask="zeroed")
    yield about(dtype=torch.float32)
    yield about(dtype=None)
    yield about(output={"text": "last_hidden_state"})
    yield about(output="hidden_states[-2]")
    yield about(tokenizer=clip)
    other = tiny_flux_pipeline().text_encoder_2
    with torch.no_grad():
        weight = other.encoder.block[1].layer[0].SelfAttention.q.weight
        weight[3, 4] = torch.nextafter(weight[3, 4], torch.tensor(9.0))
    yield about(model=other)
    yield about(model=tiny_flux_pipeline().text_encoder_2.to(torch.bfloat16))


def test_what_outputs_depend_on(flux, clip):
    found = list(abouts(flux, clip))
    assert all(one != two for i, one in enumerate(found) for two in found[:i])
    again = tiny_flux_pipeline()
    same_weights = TextEncoder(
        again.text_encoder_2, again.tokenizer_2, max_length=16, output="last_hidden_state"
    )
    assert same_weights.about == found[0]
    # What the text model does is the same, whatever is done with its outputs.
    one, two = (
        TextEncoder(
            again.text_encoder_2,
            again.tokenizer_2,
            max_length=16,
            output="last_hidden_state",
            mask=mask,
        )
        for mask in ("encoder", "both")
    )
    assert one.about == two.about


def test_padding_tokens_and_chat_templates_count(clip, clip_g, flux):
    model = flux.text_encoder
    one, two = (TextEncoder.flux_clip(model, tokenizer).about for tokenizer in (clip, clip_g))
    assert one["tokenizer"]["pad"] != two["tokenizer"]["pad"]
    tokenizers = chat_tokenizer(QWEN), chat_tokenizer(QWEN.replace("think", "thunk"))
    one, two = (
        TextEncoder(
            model, ChatTokenize(t, variant="klein", max_length=64), output="last_hidden_state"
        ).about["tokenizer"]
        for t in tokenizers
    )
    assert one["rules"] != two["rules"]
    assert one["probe"] != two["probe"]


def test_stale_weights_are_refused(flux, captions):
    pipe = tiny_flux_pipeline()

    def encoder():
        return TextEncoder.flux_t5(pipe.text_encoder_2, pipe.tokenizer_2, max_length=16)

    made = encoder()
    pipe.text_encoder_2.train()
    with pytest.raises(ValueError, match="T5EncoderModel is in training mode"):
        run(made, captions)
    pipe.text_encoder_2.eval()
    run(made, captions)
    with torch.no_grad():
        pipe.text_encoder_2.shared.weight[0, 0] += 1
    with pytest.raises(ValueError, match="weights of the T5EncoderModel are others than when"):
        run(made, captions)
    made = encoder()
    pipe.text_encoder_2.to(torch.bfloat16)
    with pytest.raises(ValueError, match="is bfloat16, and was float32 when"):
        run(made, captions)
    run(encoder(), captions)


def test_numbers_that_are_not_finite_are_refused(t5):
    encoder = TextEncoder(
        lambda ids, mask: (ids / 0.0)[..., None], t5, max_length=8, fingerprint="bad"
    )
    with pytest.raises(ValueError, match="'embeds' that are not finite: T5 overflows in float16"):
        run(encoder, ["a red ring"])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mask": "some"}, ValueError, "mask must be one of .*'zeroed'"),
        ({"max_batch": 0}, ValueError, "max_batch must be at least 1, got 0"),
        ({"dtype": torch.int8}, ValueError, "dtype must be a floating one, got torch.int8"),
        ({"output": None}, ValueError, "give output="),
        ({"output": "hidden_states[x]"}, ValueError, "output must be one of .*got 'hidden_st"),
        ({"output": {"mask": "pooler_output"}}, ValueError, "none of .*'mask'"),
        ({"output": {"a b": "pooler_output"}}, ValueError, "small letters"),
        ({"max_length": None}, ValueError, "give max_length"),
        ({"tokenizer": 3}, TypeError, "tokenizer must be a fast one"),
        ({"model": 3, "output": None}, TypeError, "must be a model or a function, got 3"),
        ({"model": len, "output": None}, ValueError, "give fingerprint="),
        ({"model": len}, ValueError, "output is for models"),
    ],
)
def test_bad_arguments_are_refused(flux, arguments, error, message):
    given = {
        "model": flux.text_encoder,
        "tokenizer": flux.tokenizer,
        "max_length": 8,
        "output": "pooler_output",
        **arguments,
    }
    with pytest.raises(error, match=message):
        TextEncoder(given.pop("model"), given.pop("tokenizer"), **given)


def test_what_a_model_does_not_give_is_refused(flux, clip, captions):
    encoder = TextEncoder(flux.text_encoder, ClipTokenize(clip), output="text_embeds")
    with pytest.raises(ValueError, match=r"no 'text_embeds', only \['last_hidden_state', 'pooler"):
        run(encoder, captions)
    with pytest.raises(ValueError, match="max_length is 70, and the ClipTokenize has 77"):
        TextEncoder(
            flux.text_encoder, ClipTokenize(clip), max_length=70, output="last_hidden_state"
        )
    with pytest.raises(ValueError, match=r"variant must be one of \['dev', 'schnell'\]"):
        TextEncoder.flux_t5(flux.text_encoder_2, flux.tokenizer_2, variant="pro")


@pytest.mark.parametrize(
    ("made", "error", "message"),
    [
        (torch.zeros(1, 2), ValueError, r"'pooled' must be \[2, L, D\] or \[2, D\].*\[1, 2\]"),
        (torch.zeros(2, 1, 1, 1), ValueError, r"gave \[2, 1, 1, 1\]"),
        ([1.0], TypeError, "must return a tensor or a dict of them"),
        ({"x": 1.0}, TypeError, "must return a tensor or a dict of them"),
        ({"cut": torch.zeros(2, 2)}, ValueError, "none of .*'cut'"),
    ],
)
def test_what_a_function_gives_is_checked(t5, made, error, message):
    encoder = TextEncoder(lambda ids, mask: made, t5, max_length=8, fingerprint="bad")
    with pytest.raises(error, match=message):
        run(encoder, ["a", "b"])

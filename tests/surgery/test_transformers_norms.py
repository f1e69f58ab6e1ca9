"""All norms of families of transformers are adopted, by what they compute, and given back; small configurations."""

import copy

import pytest
import torch
from tests.zoo import load_timm
from torch import nn

import gammabeta as gb
from gammabeta.introspection.norms import is_ours, norm_of
from gammabeta.layers.form import Form

transformers = pytest.importorskip("transformers")

# What configurations call their sizes.
SMALL = {
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "intermediate_size": 64, "d_ff": 64, "ffn_hidden_size": 64,
    "num_hidden_layers": 2, "num_layers": 2, "n_layer": 2, "encoder_layers": 1, "decoder_layers": 1,
    "num_attention_heads": 4, "n_head": 4, "num_heads": 4, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "d_kv": 8, "vocab_size": 99, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "image_size": 32, "patch_size": 8,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "moe_intermediate_size": 32, "num_local_experts": 2,
    "num_experts": 2, "n_routed_experts": 4, "num_experts_per_tok": 2, "q_lora_rank": 16, "kv_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "sliding_window": 8, "max_source_positions": 32, "num_mel_bins": 16,
    "max_target_positions": 32, "embedding_size": 32, "query_pre_attn_scalar": 8, "state_size": 8, "time_step_rank": 4,
    "decoder_start_token_id": 1,
}  # fmt: skip
WORDS, IMAGES, BOTH, SOUND = "words", "images", "both", "sound"
# Family, its input, and changes of the sizes.
FAMILIES = [
    ("llama", WORDS, {}), ("mistral", WORDS, {}), ("mixtral", WORDS, {}), ("qwen2", WORDS, {}), ("qwen3", WORDS, {}),
    ("qwen2_moe", WORDS, {}), ("gemma", WORDS, {}), ("gemma2", WORDS, {}), ("gemma3_text", WORDS, {}),
    ("t5", BOTH, {}), ("mt5", BOTH, {}), ("umt5", BOTH, {}), ("longt5", BOTH, {}), ("switch_transformers", BOTH, {}),
    ("phi", WORDS, {}), ("phi3", WORDS, {}), ("olmo", WORDS, {}), ("olmo2", WORDS, {}), ("olmo3", WORDS, {}),
    ("mamba", WORDS, {}), ("falcon_mamba", WORDS, {}), ("falcon", WORDS, {"head_dim": None}),
    ("gpt_neox", WORDS, {}), ("gpt2", WORDS, {}), ("bert", WORDS, {}), ("roberta", WORDS, {}), ("opt", WORDS, {}),
    ("bart", BOTH, {}), ("deepseek_v3", WORDS, {"num_key_value_heads": 4}),
    ("deepseek_v2", WORDS, {"num_key_value_heads": 4}), ("cohere", WORDS, {}),
    ("cohere2", WORDS, {}), ("starcoder2", WORDS, {}), ("granite", WORDS, {}), ("nemotron", WORDS, {}),
    ("glm4", WORDS, {}), ("gpt_oss", WORDS, {}), ("smollm3", WORDS, {}), ("exaone4", WORDS, {}), ("helium", WORDS, {}),
    ("squeezebert", WORDS, {}), ("vit", IMAGES, {}), ("dinov2", IMAGES, {}), ("clip_vision_model", IMAGES, {}),
    ("siglip_vision_model", IMAGES, {}), ("aimv2_vision_model", IMAGES, {}),
    ("convnext", IMAGES, {"patch_size": 4, "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}),
    ("convnextv2", IMAGES, {"patch_size": 4, "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}),
    ("swin", IMAGES, {"patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4,
                      "num_attention_heads": None, "num_hidden_layers": None, "num_layers": None}),
    ("whisper", SOUND, {}),
]  # fmt: skip


def made(family, changes):
    load_timm()  # and torchvision, which on a CPU needs it
    base = transformers.AutoConfig.for_model(family)
    sizes = {key: value for key, value in {**SMALL, **changes}.items() if hasattr(base, key) and value is not None}
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(family, **sizes)).eval()
    with torch.no_grad():
        for module in model.modules():
            if not module._modules and norm_of(module) is not None:
                for p in module.parameters():
                    p.add_(0.3 * torch.randn_like(p))
    return model


def inputs(kind, model):
    torch.manual_seed(1)
    words = torch.randint(3, 99, (2, 7))
    if kind == IMAGES:
        return {"pixel_values": torch.randn(2, 3, 32, 32)}
    if kind == SOUND:
        return {"input_features": torch.randn(2, 16, 64), "decoder_input_ids": words}
    return {"input_ids": words, **({"decoder_input_ids": words} if kind == BOTH else {})}


def run(model, given):
    model.zero_grad()
    y = model(**given)[0]
    y.float().square().mean().backward()
    return y.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("family", "kind", "changes"), FAMILIES, ids=[family for family, *_ in FAMILIES])
def test_every_norm_is_adopted(family, kind, changes):
    model = made(family, changes)
    given = inputs(kind, model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    before = {name: (type(module), dict(vars(module))) for name, module in model.named_modules()}
    y, gradients = run(model, given)

    change = gb.adopt(model)
    norms = [name for name, module in model.named_modules() if not module._modules and "norm" in named(module)]
    assert change.left == {}
    assert {*norms} <= {*change.changed}
    assert all(is_ours(model.get_submodule(name)) for name in change.changed)
    assert all(isinstance(model.get_submodule(name), before[name][0]) for name in change.changed)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())

    # Two orders of each norm's sums, through a few layers.
    mine, mine_gradients = run(model, given)
    torch.testing.assert_close(mine, y, rtol=1e-4, atol=1e-4)
    assert mine_gradients.keys() == gradients.keys()
    largest = max(float(g.abs().max()) for g in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(mine_gradients[name], gradient, rtol=1e-3, atol=1e-4 * largest, msg=name)

    assert gb.release(model).left == {}
    model.zero_grad()
    for name in change.changed:
        module, (cls, attributes) = model.get_submodule(name), before[name]
        assert type(module) is cls
        assert vars(module) == attributes


def named(module):
    return type(module).__name__.lower()


def test_gated_norms_are_left_alone_with_the_reason():
    model = made("qwen3_next", {})
    change = gb.adopt(model)
    assert {*change.left.values()} == {
        "the forward of Qwen3NextRMSNormGated takes hidden_states, gate, and not one tensor"
    }
    assert all(is_ours(model.get_submodule(name)) for name in change.changed)


@pytest.mark.parametrize("family", ["llama", "olmo2", "gemma2", "t5", "deepseek_v3", "nemotron"])
def test_bfloat16_is_bit_for_bit(family):
    """These round in the same places; few values lie where two orders of a sum differ."""
    kind = BOTH if family == "t5" else WORDS
    model = made(family, {"num_key_value_heads": 4}).bfloat16()
    given = inputs(kind, model)
    seen = {}
    for name, module in model.named_modules():
        if "norm" in named(module) and not module._modules:
            module.register_forward_hook(lambda m, args, y, name=name: seen.update({name: (args[0], y)}))
    with torch.no_grad():
        model(**given)
    gb.adopt(model)
    assert seen
    for name, (x, y) in seen.items():
        mine = type(model.get_submodule(name)).forward(model.get_submodule(name), x)
        assert mine.dtype == y.dtype
        assert float((mine == y).float().mean()) >= 0.99, name


def test_a_llama_cast_after_adoption_runs():
    model = made("llama", {})
    gb.adopt(model)
    model.bfloat16()
    with torch.no_grad():
        assert model(**inputs(WORDS, model))[0].dtype == torch.bfloat16


def test_copies_of_an_adopted_model():
    model = made("gemma", {})
    gb.adopt(model)
    given = inputs(WORDS, model)
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(model)(**given)[0], model(**given)[0])


TIMM = {
    "LayerNorm": "LayerNorm", "LayerNorm2d": "LayerNorm with channels on axis 1", "LayerNormFp32": "LayerNorm",
    "LayerNorm2dFp32": "LayerNorm with channels on axis 1", "LayerNormExp2d": "LayerNorm with channels on axis 1",
    "RmsNorm": "RMSNorm", "RmsNormFp32": "RMSNorm", "RmsNorm2dFp32": "RMSNorm with channels on axis 1",
    "RmsNorm2d": "RMSNorm with channels on axis 1; in 16 bits it rounds at other steps",
    "GroupNorm": "GroupNorm", "GroupNorm1": "GroupNorm",
}  # fmt: skip


@pytest.mark.parametrize("name", TIMM)
def test_norms_of_timm(name):
    load_timm()
    norm = pytest.importorskip("timm.layers.norm")
    torch.manual_seed(0)
    module = getattr(norm, name)(32)
    with torch.no_grad():
        for p in module.parameters():
            p.normal_()
    x = torch.randn((2, 32, 5, 3) if "2d" in name or "Group" in name else (2, 5, 32))
    y = module(x)
    model = nn.Sequential(module)
    said = f"{name} now runs on gammabeta" + ("" if name == TIMM[name] else f" as {TIMM[name]}")
    assert [entry.what for entry in gb.adopt(model).entries] == [said]
    torch.testing.assert_close(model(x), y, rtol=1e-5, atol=1e-5)
    assert isinstance(getattr(module, "form", None), Form | None)
    gb.release(model)
    assert type(module) is getattr(norm, name)


@pytest.mark.parametrize("name", ["SimpleNorm", "SimpleNorm2d"])
def test_timm_s_simple_norm_is_none_of_the_forms(name):
    """It divides by the deviation and keeps the mean."""
    load_timm()
    norm = pytest.importorskip("timm.layers.norm")
    known = "computes none of the known forms: RMSNorm and LayerNorm of the last axis or of axis 1"
    assert gb.adopt(getattr(norm, name)(32)).left == {"": f"{name} {known}"}

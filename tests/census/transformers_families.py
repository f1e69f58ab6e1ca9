"""Tiny configurations of transformers' families, and batches for each."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.benchmarks.networks import load_timm

VOCABULARY, LENGTH = 100, 12

# What is set wherever a configuration has such a setting.
TINY: dict[str, Any] = {
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "emb_dim", "word_embed_proj_dim"), 32
    ),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads",), 2),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "ffn_dim", "n_inner"), 64),
    **dict.fromkeys(("hidden_dim", "ffn_hidden_size"), 64),
    **dict.fromkeys(("d_kv", "head_dim", "attention_head_size"), 8),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length"), 64),
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "sep_token_id": 2},
    **{"image_size": 32, "patch_size": 8, "use_cache": False},
}
_SMALL = {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1]}
_SPEECH = {"conv_dim": (16, 16, 16), "conv_stride": (5, 4, 4), "conv_kernel": (10, 8, 4), "num_feat_extract_layers": 3,
           "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "mask_time_prob": 0.0,
           "apply_spec_augment": False}  # fmt: skip
_STAGES = {
    **_SMALL,
    "@side": 64,
    "@drop": ("patch_size", "image_size", "num_hidden_layers", "num_layers", "num_stages"),
}
# Families for which that is enough.
PLAIN = (
    *("albert", "bert", "camembert", "canine", "convbert", "deberta", "deberta-v2", "distilbert", "electra", "ernie"),
    *("esm", "fnet", "ibert", "layoutlm", "megatron-bert", "mpnet", "mra", "nystromformer", "roberta"),
    *("roberta-prelayernorm", "roformer", "squeezebert", "xlm", "xlm-roberta", "yoso", "biogpt", "bloom", "cohere"),
    *("cohere2", "exaone4", "falcon", "falcon_mamba", "gemma", "gemma2", "gemma3_text", "glm", "gpt2", "gpt_bigcode"),
    *("gpt_neox", "granite", "helium", "llama", "mamba", "mistral", "mpt", "nemotron", "olmo", "olmo2", "opt"),
    *("openai-gpt", "persimmon", "phi", "phi3", "qwen2", "qwen3", "stablelm", "starcoder2", "xglm", "bart"),
    *("blenderbot", "longt5", "m2m_100", "marian", "mbart", "mt5", "mvp", "pegasus", "plbart", "t5", "umt5", "beit"),
    *("data2vec-vision", "deit", "dinov2", "dinov2_with_registers", "ijepa", "vit", "vit_msn", "clip_vision_model"),
    *("clip_text_model", "siglip_vision_model"),
)
# Family -> further settings. Keys with "@" are not the configuration's: "@drop" names settings to leave as they are,
# "@side" is the side of images, "@inputs" the name of the inputs and "@shape" their shape.
SET: dict[str, dict[str, Any]] = {
    # encoders of text
    "big_bird": {"attention_type": "original_full"},
    "mobilebert": {"intra_bottleneck_size": 32, "true_hidden_size": 32},
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 8},
    "rembert": {"input_embedding_size": 32, "output_embedding_size": 32},
    "xlnet": {"d_inner": 64},
    "xmod": {"default_language": "en_XX"},
    # decoders of text
    "codegen": {"rotary_dim": 4},
    "ctrl": {"dff": 64},
    "deepseek_v3": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "head_dim": 8,
        "num_key_value_heads": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 4},
    "mamba2": {"num_heads": 8, "n_groups": 2},
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    "recurrent_gemma": {"lru_width": 32},
    "rwkv": {"attention_hidden_size": 32},
    # encoders with decoders
    "fsmt": {"src_vocab_size": VOCABULARY, "tgt_vocab_size": VOCABULARY},
    "led": {"attention_window": 4},
    "prophetnet": {"num_encoder_layers": 2, "num_encoder_attention_heads": 4},
    "switch_transformers": {"num_experts": 4},
    # vision
    "bit": {**_SMALL, "embedding_size": 16, "num_groups": 8, "@side": 64, "@drop": ("num_channels",)},
    "convnext": _STAGES,
    "convnextv2": _STAGES,
    "cvt": {
        "embed_dim": [16, 32, 48],
        "depth": [1, 2, 3],
        "num_heads": [1, 2, 3],
        "@side": 64,
        "@drop": ("patch_size",),
    },
    "dpt": {"neck_hidden_sizes": [16, 16, 16, 16], "backbone_out_indices": [0, 1, 1, 1]},
    "efficientnet": {"image_size": 64, "width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640},
    "focalnet": {"embed_dim": 16, "depths": [1, 1, 1, 1], "image_size": 64},
    "glpn": {**_SMALL, "hidden_sizes": [16, 16, 32, 32], "num_attention_heads": [1, 1, 2, 2], "@side": 64},
    "hiera": {"embed_dim": 16, "depths": [1, 1, 1, 1], "image_size": [64, 64]},
    "levit": {"image_size": 224, "patch_size": 16},
    "mobilenet_v1": {"image_size": 64},
    "mobilenet_v2": {"image_size": 64},
    "mobilevit": {"image_size": 64, "patch_size": 2},
    "mobilevitv2": {"image_size": 64, "patch_size": 2},
    "poolformer": {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1], "image_size": 64},
    "pvt": {
        "hidden_sizes": [16, 32, 48, 64],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 2, 3, 4],
        "image_size": 64,
    },
    "regnet": {**_SMALL, "embedding_size": 16, "groups_width": 8, "@side": 64},
    "resnet": {**_SMALL, "embedding_size": 16, "@side": 64},
    "segformer": {**_SMALL, "hidden_sizes": [16, 16, 32, 32], "num_attention_heads": [1, 1, 2, 2], "image_size": 64},
    "swiftformer": {"image_size": 224},
    "swin": {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "patch_size": 4},
    "swinv2": {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "patch_size": 4},
    "vit_mae": {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1},
    "vitdet": {"num_hidden_layers": 2},
    "yolos": {"num_detection_tokens": 4, "image_size": [32, 32]},
    # vision and text
    # speech, signals and series
    "audio-spectrogram-transformer": {
        "patch_size": 8,
        "num_mel_bins": 32,
        "max_length": 64,
        "frequency_stride": 8,
        "time_stride": 8,
        "@inputs": "input_values",
        "@shape": (64, 32),
    },
    "data2vec-audio": {**_SPEECH, "conv_pos_kernel_size": 3, "num_conv_pos_embeddings": 2},
    "hubert": _SPEECH,
    "moonshine": {
        "encoder_num_hidden_layers": 2,
        "decoder_num_hidden_layers": 2,
        "encoder_num_attention_heads": 4,
        "decoder_num_attention_heads": 4,
        "encoder_num_key_value_heads": 4,
        "decoder_num_key_value_heads": 4,
    },
    "sew": {**_SPEECH, "squeeze_factor": 1},
    "speech_to_text": {
        "input_feat_per_channel": 24,
        "input_channels": 1,
        "conv_channels": 32,
        "@inputs": "input_features",
        "@shape": (40, 24),
    },
    "unispeech": _SPEECH,
    "unispeech-sat": _SPEECH,
    "wav2vec2": _SPEECH,
    "wav2vec2-bert": {"feature_projection_input_dim": 24, "@inputs": "input_features", "@shape": (40, 24)},
    "wav2vec2-conformer": _SPEECH,
    "wavlm": _SPEECH,
    "whisper": {
        "num_mel_bins": 16,
        "max_source_positions": 20,
        "max_target_positions": 32,
        "@inputs": "input_features",
        "@shape": (16, 40),
    },
}
FAMILIES: dict[str, dict[str, Any]] = {**{name: {} for name in PLAIN}, **SET}


def configuration(name: str) -> Any:
    """Return the tiny configuration of a family."""
    mapping = importlib.import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING
    cls = mapping[name]
    known = {*inspect.signature(cls.__init__).parameters, *cls().to_dict(), *getattr(cls, "attribute_map", {})}
    own = {key: value for key, value in FAMILIES[name].items() if not key.startswith("@")}
    alias, default = getattr(cls, "attribute_map", {}), cls()
    # A setting under two names is set once, under the one that the class itself uses.
    tiny = {key: value for key, value in TINY.items() if key in known and alias.get(key) not in TINY}
    tiny = {key: value for key, value in tiny.items() if key not in FAMILIES[name].get("@drop", ())}
    # Where the default is a list, one for each stage, or None, the family's own settings say it if anything does.
    tiny = {key: value for key, value in tiny.items() if not isinstance(getattr(default, key, None), list | tuple)}
    return cls(**{**{key: value for key, value in tiny.items() if key not in own}, **own})


def transformer_subject(name: str) -> tuple[nn.Module, Any]:
    """Return a family's model without a head, and its batches."""
    load_timm()  # which makes torchvision importable beside a torch for CPUs; transformers imports it
    transformers = importlib.import_module("transformers")
    settings, config = FAMILIES[name], configuration(name)
    model = transformers.AutoModel.from_config(config)
    takes = inspect.signature(model.forward).parameters
    main = settings.get("@inputs", model.main_input_name)

    def batch(generator: torch.Generator, labels: Tensor) -> dict[str, Tensor]:
        count = len(labels)
        found: dict[str, Tensor] = {}
        if main == "pixel_values":
            side = settings.get("@side") or config.image_size
            side = side[0] if isinstance(side, list | tuple) else side
            wave = torch.sin(2 * torch.pi * (labels[:, None] + 1) * torch.arange(side) / side)
            noise = torch.randn(count, 3, side, side, generator=generator)
            return {main: noise + 1.5 * wave[:, None, None, :]}
        if main in ("input_values", "input_features"):
            shape = settings.get("@shape", (4000,))
            noise = torch.randn(count, *shape, generator=generator)
            wave = torch.sin(0.05 * (labels[:, None] + 1) * torch.arange(shape[-1]))
            found[main] = noise + wave.reshape(count, *[1] * (len(shape) - 1), shape[-1])
        else:
            # Words of a class, in any order.
            word = torch.randint(3, 25, (count, LENGTH), generator=generator)
            found["input_ids"] = word + 24 * labels[:, None] * (torch.rand(count, LENGTH, generator=generator) < 0.5)
            if "attention_mask" in takes:
                found["attention_mask"] = torch.ones(count, LENGTH, dtype=torch.int64)
        if "decoder_input_ids" in takes:
            found["decoder_input_ids"] = torch.randint(3, VOCABULARY, (count, 6), generator=generator)
        return found

    return model, batch

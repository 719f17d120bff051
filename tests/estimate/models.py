"""Configurations of each architecture that the estimate knows: two layers, all sizes different, all options on."""

from typing import Any

LLAMA_8B: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}
"""meta-llama/Llama-3.1-8B."""

SIZES: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
OLD: dict[str, Any] = {"vocab_size": 1000, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
FALCON: dict[str, Any] = {"vocab_size": 1000, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
DEEPSEEK: dict[str, Any] = {
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 48,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 20,
}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", GROUPED),
    "llama-tied": ("llama", GROUPED | {"tie_word_embeddings": True, "head_dim": 24}),
    "llama-biases": ("llama", SIZES | {"attention_bias": True, "mlp_bias": True}),
    "granite": ("granite", GROUPED),
    "mistral": ("mistral", GROUPED | {"head_dim": 32}),
    "smollm3": ("smollm3", GROUPED | {"pad_token_id": 0}),
    "qwen2": ("qwen2", GROUPED),
    "qwen3": ("qwen3", GROUPED | {"head_dim": 32}),
    "olmo2": ("olmo2", GROUPED),
    "phi3": ("phi3", GROUPED | {"pad_token_id": 0}),
    "gemma": ("gemma", GROUPED | {"head_dim": 32}),
    "gemma2": ("gemma2", GROUPED | {"head_dim": 32}),
    "gemma3": ("gemma3_text", GROUPED | {"head_dim": 32}),
    "gpt2": ("gpt2", OLD),
    "gpt2-inner": ("gpt2", OLD | {"n_inner": 96}),
    "gpt_neo": (
        "gpt_neo",
        {
            "vocab_size": 1000,
            "hidden_size": 64,
            "num_layers": 2,
            "attention_types": [[["global", "local"], 1]],
            "num_heads": 4,
            "max_position_embeddings": 128,
        },
    ),
    "gptj": ("gptj", OLD | {"rotary_dim": 8}),
    "gpt_neox": ("gpt_neox", SIZES),
    "phi": ("phi", GROUPED),
    "phi-norms": ("phi", SIZES | {"qk_layernorm": True}),
    "opt": ("opt", SIZES | {"ffn_dim": 176, "word_embed_proj_dim": 64}),
    "opt-narrow": ("opt", SIZES | {"ffn_dim": 176, "word_embed_proj_dim": 32, "do_layer_norm_before": False}),
    "falcon-7b": ("falcon", FALCON),
    "falcon-40b": ("falcon", FALCON | {"num_kv_heads": 2, "new_decoder_architecture": True}),
    "falcon-rw": ("falcon", FALCON | {"multi_query": False, "bias": True, "alibi": True, "parallel_attn": False}),
    "mixtral": ("mixtral", GROUPED | EXPERTS),
    "qwen2_moe": (
        "qwen2_moe",
        GROUPED | {"num_experts": 4, "moe_intermediate_size": 48, "shared_expert_intermediate_size": 80},
    ),
    "qwen3_moe": (
        "qwen3_moe",
        GROUPED | {"head_dim": 32, "num_experts": 4, "moe_intermediate_size": 48, "num_experts_per_tok": 2},
    ),
    "qwen3_moe-dense": (
        "qwen3_moe",
        GROUPED
        | {
            "head_dim": 32,
            "num_experts": 4,
            "moe_intermediate_size": 48,
            "num_experts_per_tok": 2,
            "decoder_sparse_step": 2,
        },
    ),
    "gpt_oss": ("gpt_oss", GROUPED | EXPERTS | {"head_dim": 32}),
    "llama4": ("llama4_text", GROUPED | EXPERTS | {"head_dim": 32, "intermediate_size_mlp": 96}),
    "llama4-interleaved": (
        "llama4_text",
        GROUPED | EXPERTS | {"head_dim": 32, "intermediate_size_mlp": 96, "interleave_moe_layer_step": 2},
    ),
    "deepseek_v3": ("deepseek_v3", SIZES | DEEPSEEK | {"q_lora_rank": 24}),
    "deepseek_v3-queries": ("deepseek_v3", SIZES | DEEPSEEK | {"q_lora_rank": None}),
    "bloom": ("bloom", {"vocab_size": 1000, "hidden_size": 64, "n_layer": 2, "n_head": 4}),
}
"""Name to model_type and what differs from the configuration's own defaults."""

MIXTURES: dict[str, dict[str, Any]] = {
    "Mixtral-8x7B": {
        "model_type": "mixtral",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    "Qwen3-30B-A3B": {
        "model_type": "qwen3_moe",
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
    },
    "gpt-oss-20b": {
        "model_type": "gpt_oss",
        "vocab_size": 201088,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_hidden_layers": 24,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
    },
    "DeepSeek-V3": {
        "model_type": "deepseek_v3",
        "vocab_size": 129280,
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "moe_intermediate_size": 2048,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 3,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
    },
    "Llama-4-Scout": {
        "model_type": "llama4_text",
        "vocab_size": 202048,
        "hidden_size": 5120,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "num_hidden_layers": 48,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "num_local_experts": 16,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 1,
    },
}
"""config.json of published mixtures of experts, as far as sizes are concerned."""

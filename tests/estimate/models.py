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
    "bloom": ("bloom", {"vocab_size": 1000, "hidden_size": 64, "n_layer": 2, "n_head": 4}),
}
"""Name to model_type and what differs from the configuration's own defaults."""

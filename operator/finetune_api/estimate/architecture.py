"""From a model's config.json to its modules with their shapes, in closed form: what transformers would build, without building it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["linear", "conv1d", "embedding", "rmsNorm", "layerNorm"]
Config = Mapping[str, Any]


class UnknownArchitectureError(ValueError):
    """The model is of an architecture that has no closed form here, or its config.json lacks a size."""


@dataclass(frozen=True)
class Module:
    """One module with weights. A linear layer has ``inputs`` and ``outputs``; an embedding has rows and width there; a norm has its width in both."""

    name: str
    kind: Kind
    inputs: int
    outputs: int
    bias: bool = False
    tied: bool = False
    """Its weight is that of the input embeddings."""

    @property
    def weight(self) -> int:
        """Numbers in its weight; 0 for a tied one, which is counted where it is stored."""
        if self.tied:
            return 0
        return self.outputs if self.kind.endswith("Norm") else self.inputs * self.outputs

    @property
    def parameters(self) -> int:
        """Numbers in its weight and bias."""
        return self.weight + (self.outputs if self.bias else 0)

    @property
    def is_linear(self) -> bool:
        """Whether PEFT takes it for a linear layer: ``nn.Linear``, or GPT-2's ``Conv1D``, which stores its weight transposed."""
        return self.kind in ("linear", "conv1d")


@dataclass(frozen=True)
class Attention:
    """How a layer attends: ``query`` and ``key_value`` are the widths of the projected queries, and of keys and values each."""

    heads: int
    key_value_heads: int
    head_dim: int
    quadratic: bool = False
    """The scores of all pairs of tokens are held, because the architecture has no fused attention in transformers."""

    @property
    def query(self) -> int:
        """Width of the queries, and of what attention gives."""
        return self.heads * self.head_dim

    @property
    def key_value(self) -> int:
        """Width of the keys, and of the values."""
        return self.key_value_heads * self.head_dim


@dataclass(frozen=True)
class Architecture:
    """A causal language model: sizes, and every module that has weights, by the names that transformers gives them."""

    model_type: str
    vocabulary: int
    hidden: int
    layers: int
    intermediate: int
    attention: Attention
    modules: tuple[Module, ...]
    layer_prefix: str
    """The modules of layer ``n`` are named ``{layer_prefix}{n}.…``."""
    activation: Literal["gated", "gelu", "relu", "tanhGelu"]
    """The feed-forward network: gated; or one that computes its activation from a saved input, or tanhGelu, in single steps that each save theirs."""
    prefix_heads: int
    prefix_width: int
    """Heads, and width, of what prefix tuning puts before keys and values (peft/utils/other.py, _prepare_prompt_learning_config)."""

    @property
    def head(self) -> Module:
        """The output head."""
        return self.modules[-1]

    @property
    def parameters(self) -> int:
        """Numbers in all weights; a tied output head is counted once."""
        return sum(module.parameters for module in self.modules)

    def layer(self, number: int) -> list[Module]:
        """The modules of one layer."""
        return [module for module in self.modules if module.name.startswith(f"{self.layer_prefix}{number}.")]


def known() -> list[str]:
    """The values of ``model_type`` that have a closed form."""
    return sorted(_BUILDERS)


def architecture_of(config: Config) -> Architecture:
    """The architecture that a config.json describes. Raises UnknownArchitectureError, which names the known ones."""
    model_type = config.get("model_type")
    builder = _BUILDERS.get(model_type) if isinstance(model_type, str) else None
    if builder is None:
        raise UnknownArchitectureError(
            f"the estimate knows no closed form for model_type {model_type!r}; it knows: {', '.join(known())}"
        )
    return builder(config)


def _size(config: Config, *names: str) -> int:
    """A size, under the first of its names that config.json has."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        if value is not None:
            raise UnknownArchitectureError(f"config.json: {name} must be a positive whole number, found {value!r}")
    raise UnknownArchitectureError(f"config.json of model_type {config.get('model_type')!r} has no {names[0]}")


def _size_or(config: Config, default: int, *names: str) -> int:
    """A size that config.json may leave out."""
    return _size(config, *names) if any(config.get(name) is not None for name in names) else default


def _flag(config: Config, name: str, default: bool) -> bool:
    value = config.get(name)
    return default if value is None else bool(value)


def _linear(name: str, inputs: int, outputs: int, bias: bool = False) -> Module:
    return Module(name, "linear", inputs, outputs, bias)


def _embedding(name: str, rows: int, width: int) -> Module:
    return Module(name, "embedding", rows, width)


def _rms(name: str, width: int) -> Module:
    return Module(name, "rmsNorm", width, width)


def _norm(name: str, width: int) -> Module:
    return Module(name, "layerNorm", width, width, bias=True)


def _head(name: str, hidden: int, vocabulary: int, tied: bool, bias: bool = False) -> Module:
    return Module(name, "linear", hidden, vocabulary, bias, tied)


@dataclass(frozen=True)
class _Llama:
    """How an architecture differs from Llama (transformers/models/*/configuration_*.py and modeling_*.py)."""

    head_dim: int | None = None
    key_value_heads: int | None = None
    tied: bool = False
    qkv_bias: bool | None = None
    """None: what ``attention_bias`` says, for all four projections."""
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    qk_norm: Literal["none", "head", "whole"] = "none"
    fused: bool = False
    quadratic: bool = False


_LLAMAS = {
    "llama": _Llama(),
    "granite": _Llama(),
    "mistral": _Llama(key_value_heads=8),
    "smollm3": _Llama(key_value_heads=4, tied=True),
    "qwen2": _Llama(key_value_heads=32, qkv_bias=True),
    "qwen3": _Llama(key_value_heads=32, head_dim=128, qk_norm="head"),
    "olmo2": _Llama(norms=("post_attention_layernorm", "post_feedforward_layernorm"), qk_norm="whole"),
    "phi3": _Llama(fused=True),
    "gemma": _Llama(key_value_heads=16, head_dim=256, tied=True),
    "gemma2": _Llama(
        key_value_heads=4,
        head_dim=256,
        tied=True,
        norms=(
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ),
        quadratic=True,
    ),
    "gemma3_text": _Llama(
        key_value_heads=4,
        head_dim=256,
        tied=True,
        norms=(
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ),
        qk_norm="head",
    ),
}


def _llama(config: Config) -> Architecture:
    """Llama and its relatives: RMSNorm, rotary positions, grouped queries and a gated feed-forward network."""
    kind = _LLAMAS[config["model_type"]]
    hidden, inner = _size(config, "hidden_size"), _size(config, "intermediate_size")
    heads = _size(config, "num_attention_heads")
    attention = Attention(
        heads,
        _size_or(config, kind.key_value_heads or heads, "num_key_value_heads"),
        _size_or(config, kind.head_dim or hidden // heads, "head_dim"),
        kind.quadratic,
    )
    layers, vocabulary = _size(config, "num_hidden_layers"), _size(config, "vocab_size")
    modules = [_embedding("model.embed_tokens", vocabulary, hidden)]
    for number in range(layers):
        modules += _llama_layer(config, kind, f"model.layers.{number}.", hidden, inner, attention)
    tied = _flag(config, "tie_word_embeddings", kind.tied)
    modules += [_rms("model.norm", hidden), _head("lm_head", hidden, vocabulary, tied)]
    # Phi-3's configuration has no head_dim for PEFT to read, nor has Qwen2's: the width is then that of hidden / heads
    return Architecture(
        model_type=config["model_type"],
        vocabulary=vocabulary,
        hidden=hidden,
        layers=layers,
        intermediate=inner,
        attention=attention,
        modules=tuple(modules),
        layer_prefix="model.layers.",
        activation="gated",
        prefix_heads=attention.key_value_heads,
        prefix_width=attention.key_value,
    )


def _llama_layer(
    config: Config, kind: _Llama, prefix: str, hidden: int, inner: int, attention: Attention
) -> Iterator[Module]:
    query, key_value = attention.query, attention.key_value
    bias = _flag(config, "attention_bias", False)
    qkv_bias = bias if kind.qkv_bias is None else kind.qkv_bias
    mlp_bias = _flag(config, "mlp_bias", False)
    if kind.fused:
        yield _linear(f"{prefix}self_attn.qkv_proj", hidden, query + 2 * key_value)
    else:
        yield _linear(f"{prefix}self_attn.q_proj", hidden, query, qkv_bias)
        yield _linear(f"{prefix}self_attn.k_proj", hidden, key_value, qkv_bias)
        yield _linear(f"{prefix}self_attn.v_proj", hidden, key_value, qkv_bias)
    yield _linear(f"{prefix}self_attn.o_proj", query, hidden, bias)
    if kind.qk_norm != "none":
        whole = kind.qk_norm == "whole"
        yield _rms(f"{prefix}self_attn.q_norm", query if whole else attention.head_dim)
        yield _rms(f"{prefix}self_attn.k_norm", key_value if whole else attention.head_dim)
    if kind.fused:
        yield _linear(f"{prefix}mlp.gate_up_proj", hidden, 2 * inner)
    else:
        yield _linear(f"{prefix}mlp.gate_proj", hidden, inner, mlp_bias)
        yield _linear(f"{prefix}mlp.up_proj", hidden, inner, mlp_bias)
    yield _linear(f"{prefix}mlp.down_proj", inner, hidden, mlp_bias)
    for norm in kind.norms:
        yield _rms(prefix + norm, hidden)


def _gpt2(config: Config) -> Architecture:
    """GPT-2: learned positions, and ``Conv1D`` for every linear layer."""
    hidden, layers = _size(config, "n_embd", "hidden_size"), _size(config, "n_layer", "num_hidden_layers")
    inner = _size_or(config, 4 * hidden, "n_inner")
    vocabulary, positions = _size(config, "vocab_size"), _size(config, "n_positions", "max_position_embeddings")
    modules = [_embedding("transformer.wte", vocabulary, hidden), _embedding("transformer.wpe", positions, hidden)]
    for number in range(layers):
        prefix = f"transformer.h.{number}."
        modules += [
            _norm(f"{prefix}ln_1", hidden),
            Module(f"{prefix}attn.c_attn", "conv1d", hidden, 3 * hidden, bias=True),
            Module(f"{prefix}attn.c_proj", "conv1d", hidden, hidden, bias=True),
            _norm(f"{prefix}ln_2", hidden),
            Module(f"{prefix}mlp.c_fc", "conv1d", hidden, inner, bias=True),
            Module(f"{prefix}mlp.c_proj", "conv1d", inner, hidden, bias=True),
        ]
    tied = _flag(config, "tie_word_embeddings", True)
    modules += [_norm("transformer.ln_f", hidden), _head("lm_head", hidden, vocabulary, tied)]
    heads = _size(config, "n_head", "num_attention_heads")
    return _plain(config, hidden, layers, inner, vocabulary, heads, modules, "transformer.h.", "tanhGelu")


def _gpt_neo(config: Config) -> Architecture:
    """GPT-Neo: learned positions, linear layers without bias around attention."""
    hidden, layers = _size(config, "hidden_size"), _size(config, "num_layers", "num_hidden_layers")
    inner = _size_or(config, 4 * hidden, "intermediate_size")
    vocabulary, positions = _size(config, "vocab_size"), _size(config, "max_position_embeddings")
    modules = [_embedding("transformer.wte", vocabulary, hidden), _embedding("transformer.wpe", positions, hidden)]
    for number in range(layers):
        prefix = f"transformer.h.{number}."
        modules += [
            _norm(f"{prefix}ln_1", hidden),
            *(_linear(f"{prefix}attn.attention.{name}_proj", hidden, hidden) for name in "kvq"),
            _linear(f"{prefix}attn.attention.out_proj", hidden, hidden, bias=True),
            _norm(f"{prefix}ln_2", hidden),
            _linear(f"{prefix}mlp.c_fc", hidden, inner, bias=True),
            _linear(f"{prefix}mlp.c_proj", inner, hidden, bias=True),
        ]
    tied = _flag(config, "tie_word_embeddings", True)
    modules += [_norm("transformer.ln_f", hidden), _head("lm_head", hidden, vocabulary, tied)]
    heads = _size(config, "num_heads", "num_attention_heads")
    return _plain(
        config, hidden, layers, inner, vocabulary, heads, modules, "transformer.h.", "tanhGelu", quadratic=True
    )


def _gptj(config: Config) -> Architecture:
    """GPT-J: rotary positions, attention and feed-forward in parallel behind one norm, an output head with bias."""
    hidden, layers = _size(config, "n_embd", "hidden_size"), _size(config, "n_layer", "num_hidden_layers")
    inner, vocabulary = _size_or(config, 4 * hidden, "n_inner"), _size(config, "vocab_size")
    modules = [_embedding("transformer.wte", vocabulary, hidden)]
    for number in range(layers):
        prefix = f"transformer.h.{number}."
        modules += [
            _norm(f"{prefix}ln_1", hidden),
            *(_linear(f"{prefix}attn.{name}_proj", hidden, hidden) for name in ("k", "v", "q", "out")),
            _linear(f"{prefix}mlp.fc_in", hidden, inner, bias=True),
            _linear(f"{prefix}mlp.fc_out", inner, hidden, bias=True),
        ]
    tied = _flag(config, "tie_word_embeddings", False)
    modules += [_norm("transformer.ln_f", hidden), _head("lm_head", hidden, vocabulary, tied, bias=True)]
    heads = _size(config, "n_head", "num_attention_heads")
    return _plain(
        config, hidden, layers, inner, vocabulary, heads, modules, "transformer.h.", "tanhGelu", quadratic=True
    )


def _gpt_neox(config: Config) -> Architecture:
    """GPT-NeoX and Pythia: fused queries, keys and values."""
    hidden, layers = _size(config, "hidden_size"), _size(config, "num_hidden_layers")
    inner, vocabulary = _size(config, "intermediate_size"), _size(config, "vocab_size")
    bias = _flag(config, "attention_bias", True)
    modules = [_embedding("gpt_neox.embed_in", vocabulary, hidden)]
    for number in range(layers):
        prefix = f"gpt_neox.layers.{number}."
        modules += [
            _norm(f"{prefix}input_layernorm", hidden),
            _norm(f"{prefix}post_attention_layernorm", hidden),
            _linear(f"{prefix}attention.query_key_value", hidden, 3 * hidden, bias),
            _linear(f"{prefix}attention.dense", hidden, hidden, bias),
            _linear(f"{prefix}mlp.dense_h_to_4h", hidden, inner, bias=True),
            _linear(f"{prefix}mlp.dense_4h_to_h", inner, hidden, bias=True),
        ]
    tied = _flag(config, "tie_word_embeddings", False)
    modules += [_norm("gpt_neox.final_layer_norm", hidden), _head("lm_head", hidden, vocabulary, tied)]
    heads = _size(config, "num_attention_heads")
    return _plain(config, hidden, layers, inner, vocabulary, heads, modules, "gpt_neox.layers.", "gelu")


def _phi(config: Config) -> Architecture:
    """Phi-1 and Phi-2: attention and feed-forward in parallel behind one norm, biases everywhere."""
    hidden, layers = _size(config, "hidden_size"), _size(config, "num_hidden_layers")
    inner, vocabulary = _size(config, "intermediate_size"), _size(config, "vocab_size")
    heads = _size(config, "num_attention_heads")
    key_value_heads = _size_or(config, heads, "num_key_value_heads")
    head_dim = hidden // heads
    modules = [_embedding("model.embed_tokens", vocabulary, hidden)]
    for number in range(layers):
        prefix = f"model.layers.{number}."
        modules += [
            _linear(f"{prefix}self_attn.q_proj", hidden, hidden, bias=True),
            _linear(f"{prefix}self_attn.k_proj", hidden, key_value_heads * head_dim, bias=True),
            _linear(f"{prefix}self_attn.v_proj", hidden, key_value_heads * head_dim, bias=True),
            _linear(f"{prefix}self_attn.dense", hidden, hidden, bias=True),
            _linear(f"{prefix}mlp.fc1", hidden, inner, bias=True),
            _linear(f"{prefix}mlp.fc2", inner, hidden, bias=True),
            _norm(f"{prefix}input_layernorm", hidden),
        ]
        if _flag(config, "qk_layernorm", False):
            modules += [
                _norm(f"{prefix}self_attn.q_layernorm", head_dim),
                _norm(f"{prefix}self_attn.k_layernorm", head_dim),
            ]
    tied = _flag(config, "tie_word_embeddings", False)
    modules += [_norm("model.final_layernorm", hidden), _head("lm_head", hidden, vocabulary, tied, bias=True)]
    return _plain(
        config,
        hidden,
        layers,
        inner,
        vocabulary,
        heads,
        modules,
        "model.layers.",
        "tanhGelu",
        key_value_heads=key_value_heads,
        grouped=True,
    )


def _opt(config: Config) -> Architecture:
    """OPT: learned positions (two more than it has), and projections where its embeddings are narrower than its layers."""
    hidden, layers = _size(config, "hidden_size"), _size(config, "num_hidden_layers")
    inner, vocabulary = _size(config, "ffn_dim"), _size(config, "vocab_size")
    width = _size_or(config, hidden, "word_embed_proj_dim")
    bias = _flag(config, "enable_bias", True)
    modules = [
        _embedding("model.decoder.embed_tokens", vocabulary, width),
        _embedding("model.decoder.embed_positions", _size(config, "max_position_embeddings") + 2, hidden),
    ]
    if width != hidden:
        modules += [
            _linear("model.decoder.project_out", hidden, width),
            _linear("model.decoder.project_in", width, hidden),
        ]
    if _flag(config, "do_layer_norm_before", True) and not _flag(config, "_remove_final_layer_norm", False):
        modules.append(_norm("model.decoder.final_layer_norm", hidden))
    for number in range(layers):
        prefix = f"model.decoder.layers.{number}."
        modules += [
            *(_linear(f"{prefix}self_attn.{name}_proj", hidden, hidden, bias) for name in ("k", "v", "q", "out")),
            _norm(f"{prefix}self_attn_layer_norm", hidden),
            _linear(f"{prefix}fc1", hidden, inner, bias),
            _linear(f"{prefix}fc2", inner, hidden, bias),
            _norm(f"{prefix}final_layer_norm", hidden),
        ]
    modules.append(_head("lm_head", width, vocabulary, _flag(config, "tie_word_embeddings", True)))
    heads = _size(config, "num_attention_heads")
    return _plain(config, hidden, layers, inner, vocabulary, heads, modules, "model.decoder.layers.", "relu")


def _falcon(config: Config) -> Architecture:
    """Falcon: one group of keys and values (7B), several (40B), or one for each head (RW)."""
    hidden, layers = _size(config, "hidden_size"), _size(config, "num_hidden_layers", "n_layer")
    heads, vocabulary = _size(config, "num_attention_heads", "n_head"), _size(config, "vocab_size")
    inner = _size_or(config, 4 * hidden, "ffn_hidden_size")
    new = _flag(config, "new_decoder_architecture", False)
    multi_query, bias = _flag(config, "multi_query", True), _flag(config, "bias", False)
    groups = _size_or(config, heads, "num_kv_heads", "n_head_kv") if new else 1 if multi_query else heads
    head_dim = hidden // heads
    modules = [_embedding("transformer.word_embeddings", vocabulary, hidden)]
    for number in range(layers):
        prefix = f"transformer.h.{number}."
        modules += [
            _linear(f"{prefix}self_attention.query_key_value", hidden, (heads + 2 * groups) * head_dim, bias),
            _linear(f"{prefix}self_attention.dense", hidden, hidden, bias),
            _linear(f"{prefix}mlp.dense_h_to_4h", hidden, inner, bias),
            _linear(f"{prefix}mlp.dense_4h_to_h", inner, hidden, bias),
            *(_norm(prefix + name, hidden) for name in _falcon_norms(config, new)),
        ]
    tied = _flag(config, "tie_word_embeddings", True)
    modules += [_norm("transformer.ln_f", hidden), _head("lm_head", hidden, vocabulary, tied)]
    return _plain(
        config, hidden, layers, inner, vocabulary, heads, modules, "transformer.h.", "gelu", key_value_heads=groups
    )


def _falcon_norms(config: Config, new: bool) -> list[str]:
    if not _flag(config, "parallel_attn", True):
        return ["post_attention_layernorm", "input_layernorm"]
    return ["ln_attn", "ln_mlp"] if _size_or(config, 2 if new else 1, "num_ln_in_parallel_attn") == 2 else ["input_layernorm"]


def _bloom(config: Config) -> Architecture:
    """BLOOM: ALiBi positions, a norm behind the embeddings."""
    hidden, layers = _size(config, "hidden_size", "n_embed"), _size(config, "n_layer", "num_hidden_layers")
    heads, vocabulary = _size(config, "n_head", "num_attention_heads"), _size(config, "vocab_size")
    modules = [
        _embedding("transformer.word_embeddings", vocabulary, hidden),
        _norm("transformer.word_embeddings_layernorm", hidden),
    ]
    for number in range(layers):
        prefix = f"transformer.h.{number}."
        modules += [
            _norm(f"{prefix}input_layernorm", hidden),
            _linear(f"{prefix}self_attention.query_key_value", hidden, 3 * hidden, bias=True),
            _linear(f"{prefix}self_attention.dense", hidden, hidden, bias=True),
            _norm(f"{prefix}post_attention_layernorm", hidden),
            _linear(f"{prefix}mlp.dense_h_to_4h", hidden, 4 * hidden, bias=True),
            _linear(f"{prefix}mlp.dense_4h_to_h", 4 * hidden, hidden, bias=True),
        ]
    tied = _flag(config, "tie_word_embeddings", True)
    modules += [_norm("transformer.ln_f", hidden), _head("lm_head", hidden, vocabulary, tied)]
    return _plain(
        config, hidden, layers, 4 * hidden, vocabulary, heads, modules, "transformer.h.", "gelu", quadratic=True
    )


def _plain(
    config: Config,
    hidden: int,
    layers: int,
    inner: int,
    vocabulary: int,
    heads: int,
    modules: list[Module],
    layer_prefix: str,
    activation: Literal["gelu", "relu", "tanhGelu"],
    *,
    key_value_heads: int | None = None,
    grouped: bool = False,
    quadratic: bool = False,
) -> Architecture:
    """An architecture without a gate. ``grouped``: config.json says num_key_value_heads, so PEFT's prefix is as wide as those."""
    attention = Attention(heads, key_value_heads or heads, hidden // heads, quadratic)
    return Architecture(
        model_type=config["model_type"],
        vocabulary=vocabulary,
        hidden=hidden,
        layers=layers,
        intermediate=inner,
        attention=attention,
        modules=tuple(modules),
        layer_prefix=layer_prefix,
        activation=activation,
        prefix_heads=attention.key_value_heads if grouped else heads,
        prefix_width=attention.key_value if grouped else hidden,
    )


_BUILDERS: dict[str, Callable[[Config], Architecture]] = {name: _llama for name in _LLAMAS} | {
    "gpt2": _gpt2,
    "gpt_neo": _gpt_neo,
    "gpt_neox": _gpt_neox,
    "gptj": _gptj,
    "phi": _phi,
    "opt": _opt,
    "falcon": _falcon,
    "bloom": _bloom,
}

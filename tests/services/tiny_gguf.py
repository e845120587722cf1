"""Writes a tiny embedding model that `ollama create` accepts: 768 dimensions, one layer, random weights, fixed seed.

Texts that share words get similar vectors, and the same text always gets the same one; there is no other meaning in
them. The architecture is `nomic-bert`, the file has 10 MB.
"""

from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

DIMENSIONS, FEED_FORWARD, HEADS, SEED = 768, 64, 12, 7
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'\"()-_/[]{}<>@#$%^&*+=~`|\\"
WORDS = [
    *(
        "the",
        "of",
        "and",
        "to",
        "in",
        "is",
        "for",
        "on",
        "with",
        "as",
        "by",
        "at",
        "from",
        "memory",
        "sync",
        "database",
    ),
    *("project", "session", "error", "fix", "bug", "test", "python", "postgres", "neo4j", "vector", "search", "query"),
    *("index", "table", "delete", "drop", "update", "insert", "user", "login", "token", "server", "client", "cache"),
]
WORD_START = "\u2581"
VOCABULARY = (
    *SPECIAL,
    *(WORD_START + character for character in CHARACTERS),
    *CHARACTERS,
    *(WORD_START + word for word in WORDS),
)
LAYERS = {
    "attn_qkv": (3 * DIMENSIONS, DIMENSIONS),
    "attn_output": (DIMENSIONS, DIMENSIONS),
    "ffn_up": (FEED_FORWARD, DIMENSIONS),
    "ffn_gate": (FEED_FORWARD, DIMENSIONS),
    "ffn_down": (DIMENSIONS, FEED_FORWARD),
}


def write_model(path: Path) -> None:
    """Write the model; two runs give the same bytes."""
    writer = gguf.GGUFWriter(path, "nomic-bert")
    _add_architecture(writer)
    _add_tokenizer(writer)
    _add_tensors(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_architecture(writer: gguf.GGUFWriter) -> None:
    writer.add_name("tiny")
    writer.add_block_count(1)
    writer.add_context_length(2048)
    writer.add_embedding_length(DIMENSIONS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    # Without a pooling type Ollama does not take the model for an embedding model.
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_rope_freq_base(1000.0)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    ids = {token: number for number, token in enumerate(SPECIAL)}
    ordinary = len(VOCABULARY) - len(SPECIAL)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([gguf.TokenType.CONTROL] * len(SPECIAL) + [gguf.TokenType.NORMAL] * ordinary)
    writer.add_token_scores([0.0] * len(VOCABULARY))
    writer.add_token_type_count(2)
    writer.add_bos_token_id(ids["[CLS]"])
    writer.add_eos_token_id(ids["[SEP]"])
    writer.add_sep_token_id(ids["[SEP]"])
    writer.add_unk_token_id(ids["[UNK]"])
    writer.add_pad_token_id(ids["[PAD]"])
    writer.add_mask_token_id(ids["[MASK]"])
    writer.add_uint32("tokenizer.ggml.cls_token_id", ids["[CLS]"])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)


def _add_tensors(writer: gguf.GGUFWriter) -> None:
    numbers = np.random.default_rng(SEED)
    # Token vectors far larger than the layer's weights keep the result close to a bag of words.
    writer.add_tensor("token_embd.weight", _random(numbers, (len(VOCABULARY), DIMENSIONS), scale=1.0))
    writer.add_tensor("token_types.weight", _random(numbers, (2, DIMENSIONS)))
    for name, shape in LAYERS.items():
        writer.add_tensor(f"blk.0.{name}.weight", _random(numbers, shape))
    for name in ("token_embd_norm", "blk.0.attn_output_norm", "blk.0.layer_output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(DIMENSIONS, np.float32))
        writer.add_tensor(f"{name}.bias", np.zeros(DIMENSIONS, np.float32))


def _random(numbers: np.random.Generator, shape: tuple[int, int], scale: float = 0.05) -> NDArray[np.float32]:
    return (numbers.standard_normal(shape) * scale).astype(np.float32)

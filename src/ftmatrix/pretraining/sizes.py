"""The pocket ladder: Gemma 3's architecture at sizes that a CPU trains in minutes."""

from dataclasses import dataclass

from transformers import Gemma3TextConfig, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Size:
    """Shape of one pocket model, and the peak learning rate that its pretraining takes."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    head_dim: int
    peak_lr: float

    def config(self, tokenizer: PreTrainedTokenizerFast) -> Gemma3TextConfig:
        """The Hugging Face config: tied embeddings, one KV head, every fourth layer with full attention."""
        return Gemma3TextConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=1,
            head_dim=self.head_dim,
            query_pre_attn_scalar=self.head_dim,
            max_position_embeddings=2048,
            sliding_window=512,
            layer_types=[
                "full_attention" if (layer + 1) % 4 == 0 else "sliding_attention" for layer in range(self.layers)
            ],
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )


SIZES = {
    "pocket-1m": Size(hidden=96, intermediate=256, layers=4, heads=3, head_dim=32, peak_lr=6e-3),
    "pocket-4m": Size(hidden=192, intermediate=512, layers=6, heads=3, head_dim=64, peak_lr=4e-3),
    "pocket-12m": Size(hidden=320, intermediate=896, layers=8, heads=5, head_dim=64, peak_lr=2.5e-3),
}

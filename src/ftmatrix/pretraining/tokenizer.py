"""The byte-level BPE vocabulary that all pocket models share."""

from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ftmatrix.pretraining.corpus import Source

PAD, EOS, BOS = "<pad>", "<eos>", "<bos>"


def train_tokenizer(sources: list[Source], *, vocabulary_size: int = 8192) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the sources (Gemma's special tokens, digits one by one).

    References:
        Sennrich et al. 2016, arXiv:1508.07909 (BPE); Radford et al. 2019 (byte level).
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[PAD, EOS, BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sampled(sources), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        bos_token=BOS,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def _sampled(sources: list[Source]) -> Iterator[str]:
    """Each source's passages, thinned or repeated by its weight, so that merges follow the training mixture."""
    for source in sources:
        owed = 0.0
        for passage in source.passages():
            owed += source.weight
            while owed >= 1:
                owed -= 1
                yield passage

"""A small tokenizer trained on the spot, for models that start from nothing."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def train_tokenizer(
    texts: Iterable[str], vocabulary: int, sentinels: int = 0, prefix_space: bool = False
) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer with BART's special tokens.

    Args:
        texts: what to train on.
        vocabulary: most tokens, special ones included.
        sentinels: how many of T5's `<extra_id_k>` to add.
        prefix_space: tokenise the first word of a text as any other, as SentencePiece does; GPT-2 and BART do not.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        clean_up_tokenization_spaces=False,
    )
    if sentinels:
        fast.add_tokens([f"<extra_id_{number}>" for number in range(sentinels)], special_tokens=True)
    return fast

"""A small byte-level BPE, in the files of Hugging Face."""

import tokenizers
from tokenizers import pre_tokenizers

from crystal_jax.text.prompts import generation_prompt

HALITE = "5.6 5.6 5.6\n90 90 90\nNa\n0.00 0.00 0.00\nCl\n0.50 0.50 0.50"


def write_byte_pairs(folder):
    """Its pieces are those of crystals: single digits, and words."""
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    trained.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<start>", "<end>"],
        show_progress=False,
    )
    trained.train_from_iterator([HALITE, generation_prompt(), "Mg\nMg\nTe\nLiFePO4"], trainer)
    trained.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": {"content": "<start>"}, "eos_token": "<end>"}')

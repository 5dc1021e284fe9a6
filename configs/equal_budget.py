"""Small models on `mp20_open` that differ in one thing each: the baselines and ablations of the paper.

All are trained from scratch for 600 steps of 1,536 tokens (0.9 million), with sites in the order of the data set and
random translations. All have blocks of the same size, 0.8 million parameters. Embedding and head are extra: 0.3 million
for LM-AC, 8.2 with LLaMA-2's 32,000 rows, 6.4 for GPT-2, which ties them. A row is as long as the longest text, so a
tokenizer that needs more tokens per crystal sees fewer crystals. Losses per token are not comparable between tokenizers
or formats; nats per crystal are (`crystal-jax score`) if the text is the same.

Baselines: `lm_ac`, one token per number or element. `lm_ch`, characters. `gpt2`, GPT-2's architecture and tokens
(launch/gpt2_tokenizer.sh). `llama2_tokens`, LLaMA-2's tokens. `special_tokens`, LLaMA-2's and added tokens for
crystals. `cif`, characters of a CIF.
Ablations of `lm_ch`: `absolute` coordinates in Å; coordinates with `one_decimal` or `three_decimals`. Ablations of
`lm_ac`: random `permutation` of the sites; `sorted` sites; `composition_first` with sorted sites; `no_translation`;
blocks of another size, `small` and `large`.

Result:   docs/RESULTS.md; `composition_first`: 77 % of structures and 79 % of compositions are valid, `lm_ac`: 69, 79
Cost:     of one run on one CPU core, minutes: 3 in LM-AC's tokens, 4 to 8 in characters, 10 in LLaMA-2's, 31 in GPT-2's
Command:  crystal-jax train --config=configs/equal_budget.py:lm_ac --workdir=runs/lm_ac
          crystal-jax sweep --sweep=configs/sweeps/equal_budget.py --output=runs/equal_budget
"""

import ml_collections

_TOKENS = 1_536  # of a step

_LLAMA = dict(
    architecture="llama",
    embed_dim=128,
    mlp_dim=344,
    num_layers=4,
    num_heads=4,
    num_kv_heads=4,
    head_dim=32,
    norm_eps=1e-5,
    rope_theta=10_000.0,
    tie_embeddings=False,
    dtype="float32",
)
# Two matrices of the MLP instead of three: as many weights.
_GPT2 = dict(
    architecture="gpt2",
    embed_dim=128,
    mlp_dim=512,
    num_layers=4,
    num_heads=4,
    num_positions=768,
    norm_eps=1e-5,
    dtype="float32",
)
_LLAMA_FILE = "models/llama2-7b/tokenizer.model"
_CHARACTERS = dict(tokenizer=dict(name="character"), data=dict(seq_len=768))

# What each variant changes. A row holds the longest text and its prompt.
_CHANGES = {
    "lm_ac": {},
    "lm_ch": _CHARACTERS,
    "gpt2": dict(
        model=_GPT2,
        tokenizer=dict(name="huggingface", path="models/gpt2/tokenizer.json"),
        data=dict(seq_len=512),
        execution=dict(loss_chunk=128),
    ),
    "llama2_tokens": dict(
        tokenizer=dict(name="llama2", path=_LLAMA_FILE), data=dict(seq_len=512), execution=dict(loss_chunk=128)
    ),
    "special_tokens": dict(
        tokenizer=dict(name="llama2_crystal", path=_LLAMA_FILE), data=dict(seq_len=256), execution=dict(loss_chunk=128)
    ),
    "cif": dict(text=dict(version="cif"), tokenizer=dict(name="character"), data=dict(seq_len=1_024)),
    "absolute": dict(_CHARACTERS, text=dict(coordinates="cartesian")),
    "one_decimal": dict(_CHARACTERS, text=dict(decimals=1)),
    "three_decimals": dict(_CHARACTERS, text=dict(decimals=3)),
    "permutation": dict(task=dict(order="random")),
    "sorted": dict(task=dict(order="sorted")),
    "composition_first": dict(text=dict(version="composition_first"), task=dict(order="sorted")),
    "no_translation": dict(task=dict(translate=False)),
    "small": dict(model=dict(_LLAMA, embed_dim=64, mlp_dim=172, num_layers=2, num_heads=2, num_kv_heads=2)),
    "large": dict(model=dict(_LLAMA, embed_dim=192, mlp_dim=516, num_layers=6, num_heads=6, num_kv_heads=6)),
}
VARIANTS = tuple(_CHANGES)


def get_config(variant: str = "lm_ac") -> ml_collections.ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"Unknown variant {variant!r}; expected one of {', '.join(VARIANTS)}")
    changes = _CHANGES[variant]
    config = ml_collections.ConfigDict()
    config.model = dict(changes.get("model", _LLAMA))
    config.lora = dict(rank=0, alpha=1.0, targets=(), dropout=0.0)
    config.execution = dict(scan_layers=False, remat=False, loss_chunk=0)
    config.text = dict(version="plain", coordinates="fractional", decimals=2)
    config.tokenizer = dict(name="atom_coordinate", path="")
    config.task = dict(infill=0.0, conditions=False, translate=True, order="stored", loss="completion")
    config.data = dict(directory="data/mp20/mp20_open", seq_len=128, batch_size=0, packing_bins=64, seed=0, shards=1)
    for section in ("execution", "text", "tokenizer", "task", "data"):
        config[section].update(changes.get(section, {}))
    config.data.batch_size = _TOKENS // config.data.seq_len
    config.optimizer = dict(
        name="muon",
        peak_lr=5e-3,
        end_lr=0.0,
        warmup_steps=100,
        b1=0.9,
        b2=0.99,
        weight_decay=0.1,
        clip_norm=1.0,
        accumulate=1,
    )
    config.train = dict(
        num_steps=600,
        log_every=20,
        eval_every=200,
        save_every=200,
        eval_batches=16,
        max_to_keep=1,
        seed=0,
        best_metric="val_loss",
        eval_num_samples=0,
        token_features=0.0,
    )
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.base = ""
    return config

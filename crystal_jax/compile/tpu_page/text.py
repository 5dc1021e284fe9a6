"""Text of docs/TPU.md around its tables."""

HEAD = """
# On TPUs, by the compiler's figures

Written by `python -m crystal_jax.compile.tpu_page.table`; not measured on a TPU. The programs of training and sampling
are compiled for slices that are not there, by the TPU's own compiler:
{packages}; {levels}.
What is known of them then:

- **HBM a chip**: arguments + temporaries, and the peak against what the compiler leaves a program. A program that
  does not fit is refused.
- **products / equations**: floating-point operations of matrix products in the compiled program, with the turns of
  its loops, against those that the equations ask for: every product forward and for the gradient of its input; with
  recomputation once more, all but a block's last; for the gradient of weights only where they are trained, which
  frozen ones are not. Attention counts all pairs of places of a row.
- **HBM traffic**: what all instructions of a step read and write; of a sliced array, the slice; nothing that stays in
  the chip's fast memory. **Received**: what a chip gets from others: of a gathered array, the parts of the others; of
  a summed one, twice that.
- **Step, estimate**: the longest of products, HBM traffic and received bytes, each at the chip's published peak
  (below). Real steps are longer: no part reaches its peak, and not all overlap. **MFU, estimate** is a bound in the
  same sense; it counts 4 operations a frozen weight and token, and neither attention nor recomputation. **Crystals an
  hour** are those trained on, at 282 places a crystal, or written, at 207 tokens a crystal if every finished row is
  replaced at once.

`crystal-jax compile --config=configs/llama2_70b.py --topology=v5p:4x4x4` prints the same of any configuration.
Topologies are named by their shape in chips. Google Cloud's names of v4 and v5p count cores, of which a chip has two:
v4-8 is 4 chips, and the 64 chips of v5p:4x4x4 are a v5p-128.

## Training
"""

TRAINING = """
Meshes are data × fsdp × tensor. Rows are packed with whole crystals; `paper` has the published batch, `tpu` about 234
crystals a step. An int8 base is smaller, but no less is received: the compiler widens a kernel before it gathers it.

## Sampling
"""

SAMPLING = """
`decode` writes one token in every row, `prefill` reads the prompt that all rows share, once on every part of the
mesh. Rows fill the memory up to nine tenths, at most 256 on each part of the mesh; the cache has 425 positions,
LLaMA-2's longest prompt and crystal. Models are split over tensor until their weights take a quarter of a chip's
memory, then over fsdp until they take 60 %: weights are read for every token, and chips that share them must talk in
every layer.

## Targets
"""

CHOICES_HEAD = """
## What each choice brings

A training step, changed in one thing at a time; 7B on v5e-16, 70B on v5e-64.
"""

ROWS = """
Where several query heads share a key head, the compiler takes a layer's keys and values out of the cache before it
multiplies. On v5e both fit the chip's own memory, which costs nothing; on v5p they do with fewer rows. But each weight
that it reads is then of use to fewer rows, and it writes fewer crystals an hour. With keys and values in 8 bits
(`--kv_cache=int8`) there is half as much of them, and it writes more:
"""

CHOICES = """
Logits of counted places only: the compiler's program skips pieces of a row in which nothing counts, which is not known
before it runs, so the figures are those of a row that counts everywhere.

What came before these figures:

- Activations were not told to stay split by rows. They took over the embedding's split of the width, and the compiler
  summed every layer's outputs over all chips instead of gathering its weights: a 7B on v5e-16 peaked at 10.4 GiB
  instead of 2.9.
- Each layer wrote its keys and values into the cache, and then attended to it. A row writes at a position of its own,
  which is a scatter, and a TPU does that in place only where the key and value heads of a chip fill the eight sublanes
  of a tile. For the others the compiler copied the arrays of all layers in every layer: 683 GiB of traffic a step of
  the 70B on v5e-64, and 20.6 GiB where one layer's array was passed over instead. Now a layer attends to the cache as
  it was and to its own keys beside it; all layers' are written after the last one, row by row, each chip its own rows:
  12.3 GiB.
- Weights and cache in the usual order of axes used to be rewritten in another order in every step, 44.7 GiB of traffic
  of a 7B on v5e-16 with 512 rows instead of the 12.7 of then, so that the compiler had to be asked for its own. With
  the writes at the end it asks for the usual one.
- Decoding at optimisation level O1 reads slices of the weights and the cache twice or three times: traffic of a 70B
  on v5e-64 was 2.56 times its weights and cache, at the default level 1.01.

Two choices that no shipped configuration makes yet, as neither has run on a TPU:

- `execution.attention="splash"`: JAX's splash kernels keep attention's arrays of [1,024, 1,024] on the chip, and save
  30 % of the HBM traffic of the 7B's step. Its products take longer than that traffic, so the estimate does not fall;
  it rises by 2 %, because the kernels' backward passes compute the weights again, and are counted over all pairs of
  places, of which they skip a quarter.
- `execution.keep_products=True`: of a block, what its products with weights return is kept, and only what lies between
  is computed again. That saves a quarter of the products. The 7B on v5e-16 then peaks at 14 GiB, or at 8 with
  2 micro-batches; on v4-8, whose chips have four times the rows and twice the memory, neither would fit.

They add up. With products kept, in 2 micro-batches, the einsums' traffic takes as long as the products; with splash it
takes two thirds of that. No recomputation at all needs 4 micro-batches, with or without splash, and gathers the weights
four times.

## Peaks
"""

TAIL = """
Links: half of the published bidirectional bandwidth, in a slice with more than one chip along every axis of the
torus. The HBM limit is what the compiler states when it refuses a program.
"""

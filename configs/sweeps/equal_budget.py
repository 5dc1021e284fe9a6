"""The paper's baselines and ablations at one small budget, each with two seeds: 30 runs.

Afterwards launch/judge_sweep.sh samples, evaluates and scores every run. Then run the command again: --markdown_file
writes the table of docs/RESULTS.md.

Command:  crystal-jax sweep --sweep=configs/sweeps/equal_budget.py --output=runs/equal_budget
              --markdown_file=docs/RESULTS.md
"""

CONFIG = "configs/equal_budget.py"
TITLE = "Baselines and ablations at an equal budget"

NOTE = """Each run is judged by 500 samples. Nats a crystal and IPT are means over 200 random crystals of the test
split, with 4 translations of each. A cell is empty where a run is not finished, or not yet evaluated.

The paper's ablations, structural and compositional validity, in per cent: fractional coordinates 91.4 and 83.2,
absolute coordinates 90.8 and 80.5; without permutation 92.5 and 82.9, with permutation 89.2 and 81.7. Its losses of
epochs 1 to 5: GPT-2 trained from scratch 0.946 to 0.740, special tokens 0.783 to 0.588, LLaMA-2 13B with its own
tokens 0.457 to 0.385. These losses count the prompt, so they cannot be compared with the losses in this table."""

# The paper's figures for the same quantities (table 1; appendix): rates in per cent, distances in their own units. The
# paper has other data, larger models and longer training, so only differences between rows can be compared.
PUBLISHED = {
    "lm_ac": dict(
        structural_validity=95.8,
        compositional_validity=88.9,
        coverage_recall=99.6,
        coverage_precision=98.6,
        density=0.696,
        num_elements=0.092,
    ),
    "lm_ch": dict(
        structural_validity=84.8,
        compositional_validity=83.6,
        coverage_recall=99.3,
        coverage_precision=97.9,
        density=0.864,
        num_elements=0.132,
    ),
}


def get_sweep() -> list[dict]:
    """Every variant from every seed; a seed decides the first weights and the order of the data."""
    variants = (
        *("lm_ac", "lm_ch", "gpt2", "llama2_tokens", "special_tokens", "cif"),
        *("absolute", "one_decimal", "three_decimals"),
        *("permutation", "sorted", "composition_first", "no_translation", "small", "large"),
    )
    return [{"variant": v, "train.seed": seed, "data.seed": seed} for seed in (0, 1) for v in variants]

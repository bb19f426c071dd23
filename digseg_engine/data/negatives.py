"""What a batch is asked with hard negatives: about as many prompts for what is not there as for what is, many of them alike."""

from __future__ import annotations

import numpy as np

ALIKE = 0.5  # of the negatives share a word with something that is there: "red star" beside "red circle"


def hard_names(rng: np.random.Generator, present: list[str], names: tuple[str, ...], count: int) -> list[str]:
    """`count` of `names`: half of them present in a batch, the others not, first such as share a word with a present one."""
    there = rng.permutation(present).tolist()[: count - count // 2] if present else []
    absent = [name for name in rng.permutation(names).tolist() if name not in present]
    words = {word for name in there for word in name.split()}
    alike = [name for name in absent if words & set(name.split())][: round(ALIKE * (count - len(there)))]
    negatives = list(dict.fromkeys([*alike, *absent]))
    chosen = there + negatives[: count - len(there)]
    spare = [name for name in rng.permutation(names).tolist() if name not in chosen]
    chosen += spare[: count - len(chosen)]
    while len(chosen) < count:  # a small vocabulary: ask again, the phrasing will differ
        chosen += chosen[: count - len(chosen)]
    return chosen

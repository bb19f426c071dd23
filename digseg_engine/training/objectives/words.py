"""The loss of a text encoder that learns many words: a sentence encoder's similarities, and the same meaning in any wording.

Distances are those of whitened features, as the student reads them. Phrases that the student was trained with keep what their
features were, token by token, so that it answers them as before.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel

from digseg_engine.data.query import TEMPLATES
from digseg_engine.errors import InputError
from digseg_engine.model.student import Student
from digseg_engine.text import PromptTokenizer, pad_tokens
from digseg_engine.training.loop import Parts, StageConfig
from digseg_engine.training.objectives.noise import generator

# Weights of the loss, the cosine to the teacher's vectors being 1. Chosen by hand, not searched.
SIMILARITY_WEIGHT = 2.0
KEPT_WEIGHT = 4.0  # of features whose variance is about 1
WORDING_WEIGHT = 2.0
NEIGHBOUR_WEIGHT = 0.5  # a divergence of two distributions over neighbours
TEMPERATURE = 0.07  # of these distributions: how fast a neighbour counts less with the angle
NEIGHBOURS = (
    8  # a drawn phrase stands in a batch with one of so many nearest ones, since of two drawn at random few are near
)
KNOWN_SHARE = 0.25  # of a batch's phrases are from the head of the lexicon: the names of data sets
COMMON = (
    1.5  # power of the uniform number that draws the others: the head, where common words stand, is drawn more often
)
STRIP = 2048  # rows at once where all phrases are compared with all
PART = 2  # of a batch's phrases one in so many is also asked in a template, and as many kept ones are drawn


@dataclass(frozen=True)
class Lexicon:
    """N words and phrases with a sentence encoder's unit vectors [N, T]; the first `known` are names of data sets."""

    texts: tuple[str, ...]
    vectors: Tensor
    known: int = 0

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.vectors) or self.vectors.ndim != 2 or not self.texts:
            raise InputError(f"a lexicon needs a vector for each of its texts, got {len(self.texts)} texts and vectors of shape "
                             f"{tuple(self.vectors.shape)}; make it anew: scripts/sentence_vectors.py")  # fmt: skip

    def centred(self) -> Tensor:
        """The vectors without what all share, of unit length again."""
        return F.normalize(self.vectors.float() - self.vectors.float().mean(0), dim=-1)

    def neighbours(self, count: int) -> Tensor:
        """Rows [N, count] of the phrases nearest to every phrase; all others where there are fewer."""
        vectors, count = self.centred(), min(count, len(self.texts) - 1)
        found, own = [], torch.arange(len(vectors))[:, None]
        for strip, rows in zip(vectors.split(STRIP), own.split(STRIP)):
            found.append((strip @ vectors.T).scatter(1, rows, -2.0).topk(count).indices)  # a cosine is -1 at least
        return torch.cat(found)


class WordAlignment(nn.Module):
    """Text encoder, and the projection of its features to the teacher's, trained together; only the former is kept."""

    def __init__(self, text_encoder: CLIPTextModel, student: Student, teacher_width: int) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.project = nn.Linear(text_encoder.config.hidden_size, teacher_width, bias=False)
        nn.init.orthogonal_(self.project.weight)
        self.register_buffer("centre", student.text_centre.detach().clone())
        self.register_buffer("whiten", student.text_whiten.detach().clone())

    def forward(self, ids: Tensor) -> Tensor:
        """Token numbers [K, L] -> whitened features [K, L, D]."""
        features: Tensor = self.text_encoder(ids).last_hidden_state
        return (features - self.centre) @ self.whiten


class WordsLoss:
    """Four parts: vectors of the lexicon, angles between them and who is whose neighbour, features of `kept` phrases as `former`
    encoder and tokenizer give them, and phrases in templates like the phrases alone."""

    def __init__(
        self, lexicon: Lexicon, kept: Sequence[str], former: tuple[CLIPTextModel, PromptTokenizer],
        tokenizer: PromptTokenizer, config: StageConfig, seed: int = 0,
    ) -> None:  # fmt: skip
        self.lexicon, self.kept, self.tokenizer = lexicon, list(kept), tokenizer
        self.vectors, self.neighbours = lexicon.centred(), lexicon.neighbours(NEIGHBOURS)
        self.former, self.former_tokenizer = copy.deepcopy(former[0]).eval().requires_grad_(False), former[1]
        self.config, self.seed = config, seed

    def __call__(self, model: WordAlignment, step: int) -> tuple[Tensor, Parts]:
        random = generator(self.seed, step)
        rows, texts = self._draw(random)
        near, similar, beside = self._similar(model, rows, texts)
        kept = self._keep(model, random)
        worded = self._worded(model, texts[::PART], random)
        loss = (
            near
            + SIMILARITY_WEIGHT * similar
            + NEIGHBOUR_WEIGHT * beside
            + KEPT_WEIGHT * kept
            + WORDING_WEIGHT * worded
        )
        parts = {"near": near, "similar": similar, "neighbours": beside, "kept": kept, "worded": worded}
        return loss, {name: value.detach() for name, value in parts.items()}

    def _draw(self, random: torch.Generator) -> tuple[Tensor, list[str]]:
        """Half a batch of phrases, names of data sets and common words more often, and a near neighbour of each."""
        count, known = self.config.batch // 2, self.lexicon.known
        named = round(KNOWN_SHARE * count) if known else 0
        others = len(self.vectors) - known
        rows = known + (torch.rand(count - named, generator=random) ** COMMON * others).long()
        rows = torch.cat(
            [torch.randint(0, max(1, known), (named,), generator=random), rows.clamp(max=len(self.vectors) - 1)]
        )
        chosen = torch.randint(0, self.neighbours.shape[1], (len(rows),), generator=random)
        rows = torch.cat([rows, self.neighbours[rows, chosen]])
        return rows, [self.lexicon.texts[i] for i in rows.tolist()]

    def _similar(self, model: WordAlignment, rows: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """(1 - cosine to the teacher, error of the cosines between phrases, divergence of the neighbourhoods that they make), of
        the end token and of the last word's."""
        features, mask = encode(model, self.tokenizer, texts)
        taught = self.vectors[rows].to(features.device)
        wanted = taught @ taught.T
        ends = mask.sum(1) - 1
        near, similar, beside = (features.new_zeros(()) for _ in range(3))
        for place in (ends, ends - 1):
            at = features[torch.arange(len(ends)), place]
            angles = F.normalize(at - at.mean(0).detach(), dim=-1)
            found = angles @ angles.T
            near = near + (1 - F.cosine_similarity(model.project(at), taught)).mean() / 2
            similar = similar + (found - wanted).square().mean() / 2
            beside = (
                beside
                + F.kl_div(neighbourhoods(found), neighbourhoods(wanted), log_target=True, reduction="batchmean") / 2
            )
        return near, similar, beside

    def _keep(self, model: WordAlignment, random: torch.Generator) -> Tensor:
        """Squared change of whitened features of kept phrases; token by token where both tokenizers cut alike, else of the
        end alone."""
        if not self.kept:
            return torch.zeros(())
        count = max(1, self.config.batch // PART)
        chosen = [self.kept[i] for i in torch.randint(0, len(self.kept), (count,), generator=random).tolist()]
        features, mask = encode(model, self.tokenizer, chosen)
        with torch.no_grad():
            rows = [self.former_tokenizer.ids(text) for text in chosen]
            ids, before = pad_tokens(rows)
            found = self.former.to(features.device)(torch.from_numpy(ids).to(features.device)).last_hidden_state
            old = (found - model.centre) @ model.whiten
        same = torch.from_numpy(before.sum(1)).to(mask.device) == mask.sum(1)
        length = min(features.shape[1], old.shape[1])
        error = (features[:, :length] - old[:, :length]).square().mean(-1) * (mask[:, :length] & same[:, None])
        return error.sum() / (mask & same[:, None]).sum().clamp(min=1)

    def _worded(self, model: WordAlignment, texts: Sequence[str], random: torch.Generator) -> Tensor:
        """Squared difference between a phrase alone and in a template, of the end and of the phrase's last token; words before
        it say as little as "the" does."""
        numbers = torch.randint(0, len(TEMPLATES), (len(texts),), generator=random).tolist()
        templates = [TEMPLATES[number] for number in numbers]
        said = [template.format(text) for template, text in zip(templates, texts)]
        features, mask = encode(model, self.tokenizer, said)
        with torch.no_grad():
            alone, own = encode(model, self.tokenizer, texts)
            article = encode(model, self.tokenizer, ["the"])[0][0, 1]
        before = torch.tensor([self._before(template) for template in templates], device=mask.device)
        row, last = torch.arange(len(texts)), own.sum(1) - 2
        pairs = [
            (features[row, mask.sum(1) - 1], alone[row, last + 1]),
            (features[row, before + last], alone[row, last]),
        ]
        error = torch.stack([(found - meant).square().mean() for found, meant in pairs]).mean()
        place = torch.arange(mask.shape[1], device=mask.device)
        filler = (place >= 1) & (place <= before[:, None])
        quiet = ((features - article).square().mean(-1) * filler).sum() / filler.sum().clamp(min=1)
        return error + quiet

    def _before(self, template: str) -> int:
        """How many tokens a template has before its phrase."""
        return len(self.tokenizer.ids(template[: template.index("{}")] + "x")) - 3


def encode(model: WordAlignment, tokenizer: PromptTokenizer, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Texts -> whitened features [K, L, D] and their mask [K, L]."""
    ids, mask = pad_tokens([tokenizer.ids(text) for text in texts])
    device = model.centre.device
    return model(torch.from_numpy(ids).to(device)), torch.from_numpy(mask).to(device)


def neighbourhoods(cosines: Tensor) -> Tensor:
    """Cosines [K, K] between phrases -> log probabilities [K, K] that a phrase's neighbour is which other one."""
    own = torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
    return (cosines / TEMPERATURE).masked_fill(own, -1e4).log_softmax(-1)

"""Folded bundles are scored as open ones: by their logits, or by where the label map shows a name."""

import numpy as np
import pytest

from digseg_engine import Engine
from digseg_engine.errors import InputError
from digseg_engine.evaluation.predictors import bundle_predictor, choose_predictors, decide


@pytest.fixture
def picture(with_presence):
    return with_presence.pictures[0]


def test_with_logits_they_answer_as_the_open_bundle(folded, with_presence, picture):
    size = Engine.load(folded.full, "onnxruntime").image_size
    found = bundle_predictor(folded.full, size)(picture, list(folded.names))
    wanted = bundle_predictor(folded.open, size)(picture, list(with_presence.prompts))
    assert np.array_equal(found.present, wanted.present) and not found.present.all()
    for rule in ("each", "strongest or none"):
        assert (decide(found, rule) == decide(wanted, rule)).mean() > 0.999
    assert decide(found, "each").any()


def test_of_the_map_alone_a_mask_is_where_it_shows_the_name(folded, picture):
    (predict,), _, _ = (
        list(part.values()) if isinstance(part, dict) else part for part in choose_predictors(folded.labels_only)
    )
    answer = predict(picture, list(folded.names))
    label_map = Engine.load(folded.labels_only, "onnxruntime").segment(picture).label_map
    masks = decide(answer, "strongest or none")
    shown = np.where(masks.any(0), masks.argmax(0) + 1, 0)
    assert (shown == label_map).mean() > 0.85 and len(np.unique(shown)) > 1  # the map is enlarged, as logits are


def test_a_class_that_is_not_in_the_vocabulary_is_named(folded, picture):
    with pytest.raises(InputError, match="'lighthouse' is not in this bundle's vocabulary"):
        bundle_predictor(folded.full, 32)(picture, ["road", "lighthouse"])
